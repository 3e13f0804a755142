"""Proof that rollouts come from weights that these learners published."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray.train.parity import ParityError

SIGN = 2**63  # fingerprints are unsigned, the integers of a collective are not


class ProvenanceError(ParityError):
    """Rollouts come from weights that were not published, or are too old."""


class Provenance:
    """The fingerprints of the versions that the learners published since they started; every rank has one.

    The stream is built anew with each start of the learners, so no rollout of an earlier start reaches this
    one.
    """

    def __init__(self, max_staleness: int, device: torch.device) -> None:
        self.max_staleness = max_staleness
        self.device = device
        self.fingerprints: dict[int, str] = {}

    def published(self, version: int, fingerprint: str) -> None:
        """Records a publication with the fingerprint that rank 0 computed; a collective."""
        value = torch.tensor(int(fingerprint or "0", 16) - SIGN, device=self.device)
        dist.broadcast(value, 0)
        self.fingerprints[version] = f"{int(value) + SIGN:016x}"
        for old in [known for known in self.fingerprints if known < version - self.max_staleness - 1]:
            del self.fingerprints[old]

    def check(self, step: int, groups: Sequence[Group]) -> None:
        """Checks this rank's groups of a step before anything is made of them; a collective.

        Raises:
            ProvenanceError: on all ranks, if rollouts of one of them do not prove their origin.
        """
        problem = next(filter(None, (self.problem(step, group) for group in groups)), "")
        found = torch.tensor(float(bool(problem)), device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        if found:
            problems = [""] * dist.get_world_size()
            dist.all_gather_object(problems, problem)
            raise ProvenanceError(f"Step {step}: {next(filter(None, problems))} No update was applied.")

    def problem(self, step: int, group: Group) -> str:
        """Why the group's rollouts must not be used; empty if they may."""
        oldest = step if group.dataset != "train" else max(0, step - self.max_staleness)
        sampled = f"engine {group.engine} sampled group {group.group_id} of {group.dataset}"
        for version in sorted({rollout.policy_version for rollout in group.rollouts}):
            if not oldest <= version <= step:
                return (
                    f"{sampled} by policy version {version}, but only versions {oldest} to {step} are "
                    f"allowed (rollout.max_staleness={self.max_staleness})."
                )
            published = self.fingerprints.get(version, "none")
            if group.weights_fingerprint != published:
                held = group.weights_fingerprint or "none"
                return (
                    f"{sampled} by weights of fingerprint {held} as policy version {version}, but the "
                    f"learners published version {version} with fingerprint {published}. The engines hold "
                    f"other weights: the publication of version {version} did not reach them, or not whole."
                )
        return ""
