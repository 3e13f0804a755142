"""The rollout stage of the stream: one engine of the actor pool with its policy version and its judge."""

import hashlib
import os
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from algorithms import Algorithm, Completion, Group
from srft_ray.config.schema import Config
from srft_ray.data.blocks import as_block
from srft_ray.rollout.vllm_engine import Engine, Generation, Sampling
from srft_ray.sync.health import HEARTBEAT_INTERVAL_S, Heartbeat
from srft_ray.sync.transport import transport_class
from srft_ray.verify import Item, VerifierPool

if TYPE_CHECKING:
    from srft_ray.data.stream import ReadGroups


def sequence_seed(run_seed: int, group: Group, sample: int) -> int:
    """The seed of one sequence: a pure function of what it is for, so that a repeated rollout repeats.

    A training group is named by its position in the seeded order, so that a run that begins where another ended goes on
    as one run would have.
    """
    text = f"{run_seed}/{group.dataset}/{0 if group.dataset == 'train' else group.step}/{group.group_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Request:
    """One sequence to sample: it continues `prefix`, token ids that the algorithm takes from a demonstration."""

    group: Group
    sample: int
    seed: int
    prefix: Sequence[int] = ()


class Rollout:
    """Blocks of positions -> groups with rollouts, verdicts and advantages. Ray Data calls it from several threads.

    Every sequence is sampled by one policy version. Newer weights are loaded when the coordinator demands them, or when they
    are there and the engine is idle; sequences in flight finish first.
    """

    def __init__(self, config: Config, read: "ReadGroups", coordinator: Any, device: str, dtype: str) -> None:
        self.config, self.read, self.coordinator = config, read, coordinator
        self.judge = make_verifier_pool(config)
        self.transport = transport_class(config.rollout.transport)(coordinator, config.rollout)
        self.version, self.in_flight, self.loading, self.finished = 0, 0, 0, 0
        self._changed = threading.Condition()
        self.engine: Engine | None = None
        threading.Thread(target=self._beat, name="sign-of-life", daemon=True).start()
        self.engine = Engine(config, device, dtype)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        groups = self.read(block)
        if any(group.num_rollouts for group in groups):
            self._roll_out(groups)
            while lacking := [index for index, group in enumerate(groups) if self.read.lacks_signal(group)]:
                refills = [self.read.refill(groups[index]) for index in lacking]
                self._roll_out(refills)
                for index, group in zip(lacking, refills, strict=True):
                    groups[index] = group
        self.finished += len(groups)
        return as_block(self.read.credited(groups))

    def _beat(self) -> None:
        """Tells the coordinator every second that this engine lives and what it does: a process that hangs is killed from outside."""
        context = ray.get_runtime_context()
        where = (context.get_actor_id(), context.get_node_id(), os.getpid())
        while True:
            steps = self.engine.steps if self.engine else 0
            with suppress(RayError):
                ray.get(
                    self.coordinator.beat.remote(
                        Heartbeat(*where, steps, self.in_flight + self.loading, self.finished)
                    )
                )
            time.sleep(HEARTBEAT_INTERVAL_S)

    def _roll_out(self, groups: list[Group]) -> None:
        version = self._enter(groups[0])
        started = time.time()
        try:
            requests = [
                self._request(group, sample) for group in groups for sample in range(group.num_rollouts)
            ]
            generations = self.engine.generate(
                [[*r.group.prompt_ids, *r.prefix] for r in requests],
                [r.seed for r in requests],
                self._sampling(groups[0]),
                [len(r.prefix) for r in requests],
            )
        finally:
            self._leave()
        for request, made in zip(requests, generations, strict=True):
            request.group.completions.append(self._completion(request, made, version))
        for group in groups:
            group.completions.sort(key=lambda completion: completion.sample)
            group.started_at, group.finished_at = started, time.time()
        judge_groups(self.judge, groups)

    def _request(self, group: Group, sample: int) -> "Request":
        seed = sequence_seed(self.config.run.seed, group, sample)
        if group.dataset != "train":
            return Request(group, sample, seed)
        stage = self.read.stage(group.step)
        length = min(
            stage.algorithm.prefix(group, sample, group.step - stage.start, random.Random(seed)),
            group.max_new_tokens - 1,
        )
        return Request(group, sample, seed, group.demonstrations[0].ids[:length] if length else ())

    def _completion(self, request: "Request", made: Generation, version: int) -> Completion:
        prefix, text = list(request.prefix), made.text
        if prefix:
            text = self.engine.text([*prefix, *made.ids])
        return Completion(
            request.sample,
            "rollout",
            text,
            prefix + made.ids,
            [0.0] * len(prefix) + made.logprobs,
            version,
            request.seed,
            made.finish_reason,
            0.0,
            "unjudged",
            prefix=len(prefix),
        )

    def _sampling(self, group: Group) -> Sampling:
        source = self.config.rollout if group.dataset == "train" else self.config.evaluation
        return Sampling(source.temperature, source.top_p, self.config.rollout.max_new_tokens)

    def _enter(self, group: Group) -> int:
        """Waits for the coordinator, brings the engine to an admissible version, and returns that version."""
        exact = group.dataset != "train"
        newest = ray.get(self.coordinator.admit.remote(group.step, self.config.rollout.timeout_s, exact))
        needed = group.step if exact else group.step - self.config.rollout.max_staleness
        with self._changed:
            while self.version < needed or (self.in_flight == 0 and self.version < newest):
                if self.in_flight == 0:
                    self.loading = 1
                    try:
                        self.version = self.transport.fetch(self.engine.load)
                    finally:
                        self.loading = 0
                elif not self._changed.wait(self.config.rollout.timeout_s):
                    raise TimeoutError(
                        f"Step {group.step}: {self.in_flight} blocks of rollouts did not finish within rollout.timeout_s="
                        f"{self.config.rollout.timeout_s:.0f} s, so that new weights could not be loaded."
                    )
            self.in_flight += 1
            return self.version

    def _leave(self) -> None:
        with self._changed:
            self.in_flight -= 1
            self._changed.notify_all()


def make_verifier_pool(config: Config) -> VerifierPool:
    verifier = config.verifier
    return VerifierPool(
        verifier.name, verifier.path, verifier.timeout_s, verifier.num_workers, verifier.memory_mb
    )


def judge_groups(judge: VerifierPool, groups: list[Group]) -> None:
    """Sets verdict, reward and answer of every rollout."""
    pairs = [(group, completion) for group in groups for completion in group.rollouts]
    verdicts = judge.verify(
        [Item(completion.text, group.reference, group.metadata) for group, completion in pairs]
    )
    for (_, completion), verdict in zip(pairs, verdicts, strict=True):
        completion.verdict, completion.reward, completion.answer = (
            verdict.verdict,
            verdict.reward,
            verdict.answer,
        )


def credit(group: Group, algorithm: Algorithm) -> None:
    """Gives each completion its advantage, and says whether it is trained on."""
    for completion, advantage in zip(group.completions, algorithm.advantages(group), strict=True):
        completion.advantage = advantage
    for completion in group.completions:
        completion.trained = algorithm.trains_on(group, completion)
