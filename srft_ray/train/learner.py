"""One optimizer step, exact: the same update whatever the micro-batches, ranks or ZeRO stage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Group, PolicyOutput, SequenceRecord, Stage
from srft_ray.config.schedule import learning_rate, updates_per_step, weight_decay
from srft_ray.config.training import LearnerSection
from srft_ray.train import sequence_values
from srft_ray.train.balance import exchange
from srft_ray.train.batching import MicroBatch, collate, cut, trained_sequences
from srft_ray.train.buffer import GroupBuffer
from srft_ray.train.critic import Critic, NoCritic
from srft_ray.train.deepspeed_engine import DeepSpeedEngine
from srft_ray.train.loss import StepContext, add_loss, global_counts
from srft_ray.train.nonfinite import NonFiniteError, causes, error_of_all_ranks, poisoned
from srft_ray.train.parity import check_parity
from srft_ray.train.reference import ReferenceModel
from srft_ray.train.step_metrics import Sums, all_reduce, mean_rollout_entropy, step_metrics, update_metrics
from srft_ray.train.teachers import known_logits
from srft_ray.train.token_records import record_tokens


class Learner:
    """Turns the groups of a step into one or several updates of the policy.

    Every rank calls `step` with its own groups.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        config: LearnerSection,
        parity_threshold: float,
        reference: ReferenceModel | None = None,
        records_tokens: bool = False,
        critic: Critic | None = None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.parity_threshold = parity_threshold
        self.reference = engine.reference = reference
        self.records_tokens = records_tokens
        self.buffer = GroupBuffer()
        self.critic = critic

    def step(
        self, groups: Sequence[Group], step: int, stage: Stage, temperature: float
    ) -> dict[str, float | None]:
        """Updates the policy and returns the step's metrics, equal on all ranks.

        With n mini-batches the groups whose id is i modulo n make update i, whichever rank has them.

        Raises:
            ParityError: before any update, if fresh rollouts do not come from this policy.
            NonFiniteError: an update is not finite; neither it nor those after it are applied.
        """
        algorithm = stage.algorithm
        self.buffer.used = []  # also if an update is refused before the buffer is asked
        # A stage is like a run of its own, which begins without momentum.
        if step == stage.start > 0:
            self.engine.reset_optimizer()
        rate = algorithm.reference_rate(step - stage.start)
        if rate and self.reference:
            self.reference.follow(self.engine.weights(), rate, step)
        lr = learning_rate(self.config, stage, step)
        self.engine.weight_decay = weight_decay(self.config, stage)
        number = updates_per_step(self.config, stage)
        mini_batches = []
        for index in range(number):
            chosen = [group for group in groups if group.group_id % number == index]
            mini_batches.append(
                self.micro_batches(chosen, step, stage.start, "teacher_kl" in algorithm.needs)
            )
        context = StepContext(step, algorithm, temperature)
        records = sequence_values.gather(algorithm, groups, number)
        every = list(chain(*mini_batches))
        sequence_values.attach(algorithm, records, every)
        critic = self.critic if self.critic and algorithm.uses_critic else NoCritic()
        critic.begin(algorithm, every, step, self.engine.weight_decay)
        parity: dict[str, float] = {}
        # Parity, the mean entropy and π_old are those of the policy before its first update.
        if number > 1 or "mean_entropy" in algorithm.needs:
            sums, parity_max = self.score(every, temperature, keep_as_old=number > 1)
            context = replace(context, mean_entropy=mean_rollout_entropy(sums))
            if sums["nonfinite"]:
                raise self._nonfinite_error(context, every)
            parity = check_parity(sums, parity_max, step, self.parity_threshold)
        updates = []
        for micro_batches in mini_batches:
            if "sequence_logprobs" in algorithm.needs:
                self._refresh_values(context, records, micro_batches)
            metrics, measured = self._update(context, micro_batches, lr, measures_parity=not parity)
            parity = parity or measured
            updates.append(metrics)
            critic.update(algorithm, micro_batches)
        buffered = self._update_from_buffer(groups, step, stage, lr)
        return {**step_metrics(updates), **parity, "lr": lr, **buffered, **critic.metrics()}

    def _update_from_buffer(
        self, groups: Sequence[Group], step: int, stage: Stage, lr: float
    ) -> dict[str, float]:
        """Buffers groups, and makes an update on those that wait if there are enough; returns its metrics."""
        algorithm = stage.algorithm
        if not self.buffer.collect(algorithm, groups, step):
            return self.buffer.metrics(algorithm)
        micro_batches = self.micro_batches(self.buffer.used, step, stage.start, shows_demonstrations=False)
        # Nothing is sampled for this update.
        context = StepContext(step, algorithm.buffered(), temperature=1.0)
        own_lr = lr if algorithm.buffer_lr is None else algorithm.buffer_lr
        with self.engine.second_optimizer():
            metrics, _ = self._update(context, micro_batches, own_lr, measures_parity=False)
        return self.buffer.metrics(algorithm, metrics)

    def _update(
        self, context: StepContext, micro_batches: Sequence[MicroBatch], lr: float, measures_parity: bool
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Makes one update; returns its metrics and those of parity, which are empty if it is not checked.

        Raises:
            ParityError, NonFiniteError: the update was not applied.
        """
        counts = global_counts(context.algorithm, micro_batches)
        parity: dict[str, float] = {}
        sums, parity_max = self._accumulate(context, micro_batches, counts)
        # Numbers that are not finite say nothing of the engines: the engine's step below refuses them.
        if measures_parity and not sums["nonfinite"]:
            # The gradient is there, but not applied: rollouts of another policy still change nothing.
            parity = check_parity(sums, parity_max, context.step, self.parity_threshold)
        grad_norm = self.engine.step(lr)
        if not math.isfinite(grad_norm):
            raise self._nonfinite_error(context, micro_batches)
        metrics = update_metrics(context.algorithm, sums, counts)
        metrics["grad_norm"] = grad_norm
        metrics["micro_batches"] = float(len(micro_batches))
        return metrics, parity

    def micro_batches(
        self, groups: Sequence[Group], step: int, start: int, shows_demonstrations: bool
    ) -> list[MicroBatch]:
        """Micro-batches on this rank's device, as many as every other rank has.

        `shows_demonstrations`: whether the algorithm needs those of a group beside each of its sequences.
        """
        sequences = trained_sequences(groups)
        if not self.records_tokens:  # what is recorded of a token goes to the rank that writes its sequence
            sequences = exchange(sequences, shows_demonstrations)
        room, packing = self.config.micro_batch_tokens, self.config.packing
        micro_batches = cut(sequences, room, step, start, packing)
        # Each forward and backward pass is a collective of ZeRO: a rank with fewer micro-batches adds empty
        # ones.
        most = torch.tensor(max(1, len(micro_batches)), device=self.engine.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        missing = int(most) - len(micro_batches)
        micro_batches += [collate([], step, start) for _ in range(missing)]
        return [micro_batch.to(self.engine.device) for micro_batch in micro_batches]

    @torch.no_grad()
    def score(
        self, micro_batches: Sequence[MicroBatch], temperature: float, keep_as_old: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Makes a pass without gradient; returns the sums of all ranks and this rank's largest parity gap.

        Args:
            keep_as_old: whether the log-probs are kept in the micro-batches as those of π_old.
        """
        sums = Sums(self.engine.device)
        for micro_batch in micro_batches:
            policy = self._forward(micro_batch, temperature, frozenset())
            sums.observe(micro_batch, policy)
            if keep_as_old:
                micro_batch.old_BT = policy.logprobs_BT
        return all_reduce(sums), sums.parity_max

    @torch.no_grad()
    def _refresh_values(
        self, context: StepContext, records: Sequence[SequenceRecord], micro_batches: Sequence[MicroBatch]
    ) -> None:
        """Gives the sequences of an update the values that follow from their log-probs before it."""
        needs = context.algorithm.needs & {"reference"}
        policies = [self._forward(each, context.temperature, needs) for each in micro_batches]
        sequence_values.refresh(context.algorithm, records, micro_batches, policies)

    def _accumulate(
        self, context: StepContext, micro_batches: Sequence[MicroBatch], counts: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Adds the gradients of all micro-batches of one update; returns what `score` does."""
        sums = Sums(self.engine.device)
        algorithm = context.algorithm
        for index, micro_batch in enumerate(micro_batches):
            policy = self._forward(micro_batch, context.temperature, algorithm.needs, context.mean_entropy)
            if self.records_tokens:
                record_tokens(algorithm, micro_batch, policy)
            loss = add_loss(algorithm, micro_batch, policy, counts, sums)
            is_finite = sums.observe(micro_batch, policy, loss)
            self.engine.backward(
                poisoned(loss, policy.logprobs_BT, is_finite), last=index == len(micro_batches) - 1
            )
        return all_reduce(sums), sums.parity_max

    def _forward(
        self,
        micro_batch: MicroBatch,
        temperature: float,
        needs: frozenset[str],
        mean_entropy: Tensor | None = None,
    ) -> PolicyOutput:
        """What the policy, and the reference where it is needed, say of the micro-batch's tokens."""
        inputs = (micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N, temperature)
        positions = micro_batch.position_ids_BL
        known = known_logits(needs, self.engine, self.reference, micro_batch, temperature)
        options = ("entropy_gradient" in needs, tuple(known.values()), False, positions)
        logprobs_N, entropies_N, *kls_N = self.engine.forward(*inputs, *options)
        reference_BT = None
        if self.reference and "reference" in needs:
            reference_BT = micro_batch.align(self.reference.forward(*inputs, position_ids_BL=positions)[0])
        return PolicyOutput(
            logprobs_BT=micro_batch.align(logprobs_N),
            entropies_BT=micro_batch.align(entropies_N),
            old_logprobs_BT=micro_batch.old_BT,
            reference_logprobs_BT=reference_BT,
            **{name: micro_batch.align(kl_N) for name, kl_N in zip(known, kls_N, strict=True)},
            mean_entropy=mean_entropy,
        )

    def _nonfinite_error(self, context: StepContext, micro_batches: Sequence[MicroBatch]) -> NonFiniteError:
        """Names the sequences of all ranks that are at fault, from another forward pass; a collective."""
        counts = global_counts(context.algorithm, micro_batches)
        needs = context.algorithm.needs
        mean_entropy = context.mean_entropy
        if mean_entropy is not None:
            # One sequence can make the mean of all NaN; the losses of the others are judged without it.
            mean_entropy = mean_entropy.nan_to_num()
        every = []
        for micro_batch in micro_batches:
            with torch.no_grad():
                policy = self._forward(micro_batch, context.temperature, needs, mean_entropy)
            every += causes(context.algorithm, micro_batch, policy, counts)
        return error_of_all_ranks(context.step, every)
