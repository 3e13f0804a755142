"""Health of the engines. Ray itself starts an engine that died again; one that hangs is found here."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from srft_ray.sync.processes import Process

HEARTBEAT_INTERVAL_S = 1.0  # between heartbeats of one of few engines, and between checks of all of them
HEARTBEATS_PER_S = 100  # of all engines: each of more engines sends one less often
ALIVE_S = 10.0  # since its last heartbeat, or two intervals, for an engine to be counted
INTERVALS_PER_TIMEOUT = 20  # at least so many heartbeats are missed before an engine is killed for silence


@dataclass(frozen=True)
class Heartbeat:
    """What an engine says of itself.

    Attributes:
        engine: id of its actor, which a restart of the actor keeps.
        node, pid: where its process runs.
        steps: steps of vLLM done by this process.
        in_flight: blocks that are being generated, and a load of weights.
        finished: groups finished by this process.
        generation: the start of the learners whose stream the engine belongs to.
        started: start time of the process (`sync.processes.Process`).
    """

    engine: str
    node: str
    pid: int
    steps: int
    in_flight: int
    finished: int
    generation: int = 0
    started: int = 0


@dataclass
class EngineHealth:
    """What is known of an engine. Times are monotonic seconds.

    Attributes:
        heard_at: when its last heartbeat came; infinity after a kill, until the next process is heard of.
        progress_at: when it last did a step or had nothing to do; infinity as above.
        finished_before: groups finished by processes of it that died.
    """

    heartbeat: Heartbeat
    heard_at: float
    progress_at: float
    finished_before: int = 0

    @property
    def finished(self) -> int:
        """Groups that it has finished since the learners started."""
        return self.finished_before + self.heartbeat.finished

    def problem(self, now: float, timeout_s: float) -> str:
        """Why the engine is to be killed; empty if it is healthy."""
        silent_s = now - self.heard_at
        stalled_s = now - self.progress_at
        if silent_s > timeout_s:
            return f"said nothing for {silent_s:.0f} s"
        if stalled_s > timeout_s:
            return (
                f"made no progress for {stalled_s:.0f} s with {self.heartbeat.in_flight} blocks of rollouts"
            )
        return ""

    def was_killed(self) -> None:
        """Nothing is asked of the engine until its next process is heard of."""
        self.heard_at = math.inf
        self.progress_at = math.inf


def send_heartbeats(coordinator: Any, state: Callable[[], Heartbeat]) -> None:
    """Tells the coordinator for ever what `state` says of an engine; one that hangs is killed from outside.

    The coordinator answers after how many seconds it wants to hear of the engine again.
    """
    interval_s = HEARTBEAT_INTERVAL_S
    while True:
        with suppress(RayError):  # the coordinator is started again if it dies
            interval_s = ray.get(coordinator.heartbeat.remote(state()))
        time.sleep(interval_s)


def kill_engine(heartbeat: Heartbeat) -> None:
    """Kills the engine's process from its own node by a signal: a stopped process would not hear Ray's
    request to end.
    """
    process = Process(heartbeat.pid, heartbeat.started)

    def kill() -> None:
        process.kill()

    there = NodeAffinitySchedulingStrategy(heartbeat.node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(kill).options(scheduling_strategy=there).remote()


def heartbeat_interval_s(engines: int, timeout_s: float) -> float:
    """Seconds between two heartbeats of each of so many engines, killed after a silence of `timeout_s`."""
    longest_s = timeout_s / INTERVALS_PER_TIMEOUT
    wanted_s = engines / HEARTBEATS_PER_S
    return max(HEARTBEAT_INTERVAL_S, min(longest_s, wanted_s))


class HealthMonitor:
    """Decides which engines are healthy, from their heartbeats. `heartbeat` and `check` are called with the
    time.

    An engine that is silent or makes no progress for `timeout_s` seconds is killed; Ray starts it again and
    Ray Data repeats its blocks.

    Attributes:
        finished: groups that the engines have finished since the learners started.
    """

    def __init__(
        self,
        timeout_s: float,
        report: Callable[[str, str], None],
        kill: Callable[[Heartbeat], None] = kill_engine,
    ) -> None:
        """`report` is told (kind, message) of every death; `kill` ends the process that sent a heartbeat."""
        self.timeout_s = timeout_s
        self.report = report
        self.kill = kill
        self.engines: dict[str, EngineHealth] = {}
        self.generation = 0
        self.finished = 0

    def restart(self, generation: int) -> None:
        """The engines known so far belong to a stream that has ended; their heartbeats are ignored."""
        self.generation = generation
        self.engines.clear()
        self.finished = 0

    @property
    def interval_s(self) -> float:
        """Seconds between two heartbeats of an engine."""
        return heartbeat_interval_s(len(self.engines), self.timeout_s)

    def heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        """Takes the heartbeat of an engine at the time `now`."""
        if heartbeat.generation < self.generation:
            return
        health = self.engines.get(heartbeat.engine)
        if health is None:
            health = EngineHealth(heartbeat, now, now)
            self.engines[heartbeat.engine] = health
            self.finished += health.finished
        last, finished = health.heartbeat, health.finished
        if (heartbeat.node, heartbeat.pid) != (last.node, last.pid):
            self.report("engine", f"engine {heartbeat.engine[:8]} died and was started again")
            health.finished_before += last.finished
            health.progress_at = now
        if heartbeat.steps != last.steps or not heartbeat.in_flight:
            health.progress_at = now
        health.heartbeat = heartbeat
        health.heard_at = now
        # A sum over all engines would be made for each of their admissions.
        self.finished += health.finished - finished

    def problems(self, now: float) -> dict[str, str]:
        """The engines that are to be killed, and what is wrong with each."""
        found = {engine: health.problem(now, self.timeout_s) for engine, health in self.engines.items()}
        return {engine: problem for engine, problem in found.items() if problem}

    def check(self, now: float) -> None:
        """Kills the engines that are not healthy."""
        for engine, problem in self.problems(now).items():
            health = self.engines[engine]
            health.was_killed()
            limit = f"rollout.stall_timeout_s={self.timeout_s:g}"
            self.report("engine", f"engine {engine[:8]} {problem} ({limit}): it is killed")
            self.kill(health.heartbeat)

    def metrics(self, groups_taken: int, now: float) -> dict[str, float]:
        """Living engines, and groups that wait for the learners, who have taken `groups_taken` since they
        started.
        """
        alive_s = max(ALIVE_S, 2 * self.interval_s)
        alive = sum(now - h.heard_at < alive_s for h in self.engines.values())
        return {"engines": float(alive), "queue/depth": float(max(0, self.finished - groups_taken))}
