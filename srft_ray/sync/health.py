"""Watches the engines: Ray starts one that dies again; one that hangs looks alive to it."""

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEARTBEAT_INTERVAL_S = 1.0  # between looks, and between an engine's signs of life
ALIVE_S = 10.0  # since its last heartbeat, for an engine to be counted


@dataclass(frozen=True)
class Heartbeat:
    """What an engine says of itself: its actor, node and process ids, steps of vLLM done, blocks being generated, groups finished."""

    engine: str
    node: str
    pid: int
    steps: int
    in_flight: int
    finished: int


@dataclass
class EngineHealth:
    """What is known of an engine: its last heartbeat, when it came and when it last made progress or had nothing to do (monotonic
    seconds), and what processes of it that died had finished."""

    heartbeat: Heartbeat
    heard: float
    moved: float
    before: int = 0


class HealthMonitor:
    """Kills engines that are silent, or do not get on with what they have, for `timeout_s`; Ray starts them again and
    Ray Data repeats their blocks."""

    def __init__(self, timeout_s: float, report: Callable[[str, str], None]) -> None:
        self.timeout_s, self.report = timeout_s, report
        self.engines: dict[str, EngineHealth] = {}
        self._task: asyncio.Task[None] | None = None

    def restart(self) -> None:
        """The engines known so far are of a stream that has ended."""
        self.engines.clear()

    def beat(self, heartbeat: Heartbeat, now: float) -> None:
        self._task = self._task or asyncio.get_running_loop().create_task(self._look())
        health = self.engines.setdefault(heartbeat.engine, EngineHealth(heartbeat, now, now))
        if (heartbeat.node, heartbeat.pid) != (health.heartbeat.node, health.heartbeat.pid):
            self.report("engine", f"engine {heartbeat.engine[:8]} died and was started again")
            health.before += health.heartbeat.finished
            health.moved = now
        if heartbeat.steps != health.heartbeat.steps or not heartbeat.in_flight:
            health.moved = now
        health.heartbeat, health.heard = heartbeat, now

    def hung(self, now: float) -> dict[str, str]:
        """Engines to kill, and what is wrong with each."""
        found = {}
        for engine, health in self.engines.items():
            if now - health.heard > self.timeout_s:
                found[engine] = f"said nothing for {now - health.heard:.0f} s"
            elif now - health.moved > self.timeout_s:
                found[engine] = (
                    f"made no progress for {now - health.moved:.0f} s with {health.heartbeat.in_flight} blocks of rollouts"
                )
        return found

    def figures(self, taken: int) -> dict[str, float]:
        finished = sum(health.before + health.heartbeat.finished for health in self.engines.values())
        alive = sum(time.monotonic() - health.heard < ALIVE_S for health in self.engines.values())
        return {"engines": float(alive), "queue/depth": float(max(0, finished - taken))}

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            for engine, why in self.hung(time.monotonic()).items():
                health = self.engines[engine]
                health.heard = health.moved = math.inf  # nothing is asked of it until it speaks again
                self.report(
                    "engine",
                    f"engine {engine[:8]} {why} (rollout.stall_timeout_s={self.timeout_s:g}): it is killed",
                )
                _kill(health.heartbeat)


def _kill(heartbeat: Heartbeat) -> None:
    """From its own node, without a word to the process: one that is stopped would not hear Ray's request to end."""

    def end() -> None:
        os.kill(heartbeat.pid, signal.SIGKILL)

    there = NodeAffinitySchedulingStrategy(heartbeat.node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(end).options(scheduling_strategy=there).remote()
