"""One rank's part in the publication of weights, and the check that rollouts come from what was published."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from algorithms import Group
from srft_ray.sync.fingerprint import FingerprintedWeights, model_fingerprint
from srft_ray.sync.pieces import Rank
from srft_ray.sync.probe import probe_ids
from srft_ray.sync.transports import transport_class
from srft_ray.sync.versions import LearnerStart
from srft_ray.train.deepspeed_engine import DeepSpeedEngine
from srft_ray.train.job import Job
from srft_ray.train.provenance import Provenance


class Publisher:
    """All methods are collectives; without rollout engines they do nothing."""

    def __init__(
        self, job: Job, start: LearnerStart, engine: DeepSpeedEngine, parity_threshold: float
    ) -> None:
        self.start = start
        self.engine = engine
        self.model = job.model
        self.probes = job.rollout.max_staleness > 0
        self.provenance = Provenance(job.rollout.max_staleness, parity_threshold, engine.device)
        self.transport = None
        if job.uses_engines:
            make_transport = transport_class(job.rollout.transport)
            self.transport = make_transport(job.coordinator, job.rollout, start.generation)

    def publish(self, version: int) -> None:
        """Gives the engines the weights of a version and remembers their fingerprint."""
        if not self.transport:
            return
        sender = dist.get_rank() == 0
        from_model = self.start.from_model and version == self.start.step
        tensors = iter(()) if from_model else self.engine.tensors.changed()
        # The fingerprint is taken here and not in the transport, which may lose or confuse what it is given.
        weights = FingerprintedWeights(tensors, Rank.of_this_process())
        self.transport.publish(version, weights, sender=sender)
        hashes = weights.exhaust()
        if from_model and sender:
            hashes = int(model_fingerprint(self.model.path), 16)
        self.provenance.published(version, hashes, self._score_probe())

    def close(self) -> None:
        """The learners leave."""
        if self.transport:
            self.transport.close()

    @torch.no_grad()
    def _score_probe(self) -> tuple[float, ...]:
        """Without staleness all rollouts are scored by the learners, and there is nothing more to show."""
        if not self.probes:
            return ()
        vocab_size = self.engine.policy.model.config.get_text_config().vocab_size
        ids = probe_ids(vocab_size, self.model.max_length)
        ids_BL = torch.tensor([ids], device=self.engine.device)
        positions_N = torch.arange(1, len(ids), device=self.engine.device)
        logprobs_N, _ = self.engine.forward(ids_BL, torch.zeros_like(positions_N), positions_N, 1.0, False)
        return tuple(logprobs_N.tolist())

    def check(self, step: int, groups: Sequence[Group]) -> float | None:
        """Gives the largest difference of the probes; raises ProvenanceError if rollouts of a step come from
        weights that were not published, or are too old."""
        return self.provenance.check(step, groups) if self.transport else None
