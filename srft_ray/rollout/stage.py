"""The rollout stage of the stream: one engine of the actor pool with its policy version and its judge."""
import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from algorithms import Algorithm, Completion, Group
from srft_ray.config import Config
from srft_ray.data.blocks import as_block
from srft_ray.rollout.engine import Engine, Sampling
from srft_ray.verify import Item, Judge
from srft_ray.weights import transport_class


def sequence_seed(run_seed: int, dataset: str, step: int, group_id: int, sample: int) -> int:
    """The seed of one sequence: a pure function of what it is for, so that a repeated rollout repeats."""
    text = f"{run_seed}/{dataset}/{step}/{group_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class Rollout:
    """Blocks of positions -> groups with rollouts, verdicts and advantages. Ray Data calls it from several threads.

    Every sequence is sampled by one policy version. Newer weights are loaded when the gate demands them, or when they
    are there and the engine is idle; sequences in flight finish first.
    """

    def __init__(self, config: Config, algorithm: Algorithm, read: Callable[[dict[str, Any]], list[Group]], gate: Any, device: str,
                 dtype: str) -> None:
        self.config, self.algorithm, self.read, self.gate = config, algorithm, read, gate
        self.judge = make_judge(config)
        self.transport = transport_class(config.rollout.transport)(gate, config.rollout)
        self.engine = Engine(config, device, dtype)
        self.version, self.in_flight = 0, 0
        self._changed = threading.Condition()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        groups = self.read(block)
        if any(group.num_rollouts for group in groups):
            self._roll_out(groups)
            judge_groups(self.judge, groups)
        for group in groups:
            if group.dataset == "train":
                credit(group, self.algorithm.stage(group.step, self.config.trainer.steps).algorithm)
        return as_block(groups)

    def _roll_out(self, groups: list[Group]) -> None:
        version = self._enter(groups[0])
        started = time.time()
        try:
            requests = [(group, sample) for group in groups for sample in range(group.num_rollouts)]
            seeds = [sequence_seed(self.config.run.seed, g.dataset, g.step, g.group_id, sample) for g, sample in requests]
            generations = self.engine.generate([g.prompt_ids for g, _ in requests], seeds, self._sampling(groups[0]))
        finally:
            self._leave()
        for (group, sample), seed, made in zip(requests, seeds, generations, strict=True):
            group.completions.append(Completion(
                sample, "rollout", made.text, made.ids, made.logprobs, version, seed, made.finish_reason, 0.0, "unjudged"))
        for group in groups:
            group.started_at, group.finished_at = started, time.time()

    def _sampling(self, group: Group) -> Sampling:
        source = self.config.rollout if group.dataset == "train" else self.config.evaluation
        return Sampling(source.temperature, source.top_p, self.config.rollout.max_new_tokens)

    def _enter(self, group: Group) -> int:
        """Waits for the gate, brings the engine to an admissible version, and returns that version."""
        exact = group.dataset != "train"
        newest = ray.get(self.gate.admit.remote(group.step, self.config.rollout.timeout_s, exact))
        needed = group.step if exact else group.step - self.config.rollout.max_staleness
        with self._changed:
            while self.version < needed or (self.in_flight == 0 and self.version < newest):
                if self.in_flight == 0:
                    self.version = self.transport.fetch(self.engine.load)
                elif not self._changed.wait(self.config.rollout.timeout_s):
                    raise TimeoutError(f"Step {group.step}: {self.in_flight} blocks of rollouts did not finish within rollout.timeout_s="
                                       f"{self.config.rollout.timeout_s:.0f} s, so that new weights could not be loaded.")
            self.in_flight += 1
            return self.version

    def _leave(self) -> None:
        with self._changed:
            self.in_flight -= 1
            self._changed.notify_all()


def make_judge(config: Config) -> Judge:
    verifier = config.verifier
    return Judge(verifier.name, verifier.path, verifier.timeout_s, verifier.num_workers, verifier.memory_mb)


def judge_groups(judge: Judge, groups: list[Group]) -> None:
    """Sets verdict, reward and answer of every rollout."""
    pairs = [(group, completion) for group in groups for completion in group.rollouts]
    verdicts = judge.judge([Item(completion.text, group.reference, group.metadata) for group, completion in pairs])
    for (_, completion), verdict in zip(pairs, verdicts, strict=True):
        completion.verdict, completion.reward, completion.answer = verdict.verdict, verdict.reward, verdict.answer


def credit(group: Group, algorithm: Algorithm) -> None:
    """Orders the group's completions and gives each its advantage."""
    group.completions.sort(key=lambda completion: completion.sample)
    for completion, advantage in zip(group.completions, algorithm.advantages(group), strict=True):
        completion.advantage = advantage
