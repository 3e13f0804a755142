"""Proof that rollouts come from weights that these learners published."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray.sync.probe import mean_difference
from srft_ray.sync.versions import fingerprint_of
from srft_ray.train.parity import ParityError

HALF = 2**32


class ProvenanceError(ParityError):
    """Rollouts come from weights that were not published, or are too old."""


class Provenance:
    """What the learners published since they started; every rank has one.

    The stream is built anew with each start of the learners, so no rollout of an earlier start reaches this
    one.

    Attributes:
        fingerprints: by version.
        probes: log-probs of the probe by version (`sync.probe`); empty if they are not compared.
    """

    def __init__(self, max_staleness: int, parity_threshold: float, device: torch.device) -> None:
        """`parity_threshold`: of the mean difference between the log-probs of engine and learner, in nats."""
        self.max_staleness = max_staleness
        self.parity_threshold = parity_threshold
        self.device = device
        self.fingerprints: dict[int, str] = {}
        self.probes: dict[int, tuple[float, ...]] = {}

    def published(self, version: int, hashes: int, probe: tuple[float, ...] = ()) -> None:
        """Records a publication with this rank's sum of hashes and log-probs of the probe; a collective."""
        # Two halves, whose sums over ranks fit into the integers of a collective.
        halves = torch.tensor(divmod(hashes % 2**64, HALF), device=self.device)
        dist.all_reduce(halves)
        high, low = halves.tolist()
        self.fingerprints[version] = fingerprint_of(high * HALF + low)
        self.probes[version] = probe
        for old in [known for known in self.fingerprints if known < version - self.max_staleness - 1]:
            del self.fingerprints[old]
            self.probes.pop(old, None)

    def check(self, step: int, groups: Sequence[Group]) -> float | None:
        """Checks this rank's groups of a step before anything is made of them; a collective.

        Returns:
            The largest mean difference of an engine's log-probs of the probe from those of the learners that
            published its version, in nats; None if none was compared.

        Raises:
            ProvenanceError: on all ranks, if rollouts of one of them do not prove their origin.
        """
        problem = next(filter(None, (self.problem(step, group) for group in groups)), "")
        differences = [self.probe_difference(group) for group in groups]
        largest = max((difference for difference in differences if difference is not None), default=-1.0)
        found = torch.tensor([float(bool(problem)), largest], dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        if found[0]:
            problems = [""] * dist.get_world_size()
            dist.all_gather_object(problems, problem)
            problem = next(filter(None, problems))
            raise ProvenanceError(f"Step {step}: {problem} Nothing of this step is kept.")
        return float(found[1]) if found[1] >= 0 else None

    def problem(self, step: int, group: Group) -> str:
        """Why the group's rollouts must not be used; empty if they may."""
        oldest = step if group.dataset != "train" else max(0, step - self.max_staleness)
        sampled = f"engine {group.engine} sampled group {group.group_id} of {group.dataset}"
        for version in sampling_versions(group):
            if not oldest <= version <= step:
                return (
                    f"{sampled} by policy version {version}, but only versions {oldest} to {step} are "
                    f"allowed (rollout.max_staleness={self.max_staleness})."
                )
            published = self.fingerprints.get(version, "none")
            held = group.fingerprints.get(version, "")
            if held != published:
                return (
                    f"{sampled} by weights of fingerprint {held or 'none'} as policy version {version}, but "
                    f"the learners published version {version} with fingerprint {published}. The engines "
                    f"hold other weights: the publication of version {version} did not reach them, or not "
                    "whole."
                )
        difference = self.probe_difference(group)
        if difference is not None and not difference <= self.parity_threshold:
            return (
                f"{sampled}, but after it loaded the published weights its log-probs of a fixed sequence "
                f"differ from the learner's by {difference:.2e} on average (threshold "
                f"{self.parity_threshold:.0e}): it computes with other weights, or its model differs."
            )
        return ""

    def probe_difference(self, group: Group) -> float | None:
        """Of the engine's log-probs of the probe from the learner's, the largest over the versions that
        sampled the group; None if they are not compared."""
        differences = [
            mean_difference(expected, group.probes.get(version, ()))
            for version in sampling_versions(group)
            if (expected := self.probes.get(version, ()))
        ]
        # The largest of torch is NaN if one of them is.
        return float(torch.tensor(differences, dtype=torch.float64).max()) if differences else None


def sampling_versions(group: Group) -> list[int]:
    """All versions that sampled tokens of the group's rollouts, oldest first."""
    return sorted({version for rollout in group.rollouts for version, _, _ in rollout.parts})
