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

PERIOD_S = 1.0  # between looks, and between an engine's signs of life
ALIVE_S = 10.0  # since its last sign, for an engine to be counted


@dataclass(frozen=True)
class Sign:
    """What an engine says of itself: its actor, node and process ids, steps of vLLM done, blocks being generated, groups finished."""
    engine: str
    node: str
    pid: int
    steps: int
    in_flight: int
    finished: int


@dataclass
class Pulse:
    """What is known of an engine: its last sign, when it came and when it last made progress or had nothing to do (monotonic
    seconds), and what processes of it that died had finished."""
    sign: Sign
    heard: float
    moved: float
    before: int = 0


class Watch:
    """Kills engines that are silent, or do not get on with what they have, for `timeout_s`; Ray starts them again and
    Ray Data repeats their blocks."""

    def __init__(self, timeout_s: float, report: Callable[[str, str], None]) -> None:
        self.timeout_s, self.report = timeout_s, report
        self.pulses: dict[str, Pulse] = {}
        self._task: asyncio.Task[None] | None = None

    def restart(self) -> None:
        """The engines known so far are of a stream that has ended."""
        self.pulses.clear()

    def beat(self, sign: Sign, now: float) -> None:
        self._task = self._task or asyncio.get_running_loop().create_task(self._look())
        pulse = self.pulses.setdefault(sign.engine, Pulse(sign, now, now))
        if (sign.node, sign.pid) != (pulse.sign.node, pulse.sign.pid):
            self.report("engine", f"engine {sign.engine[:8]} died and was started again")
            pulse.before += pulse.sign.finished
            pulse.moved = now
        if sign.steps != pulse.sign.steps or not sign.in_flight:
            pulse.moved = now
        pulse.sign, pulse.heard = sign, now

    def hung(self, now: float) -> dict[str, str]:
        """Engines to kill, and what is wrong with each."""
        found = {}
        for engine, pulse in self.pulses.items():
            if now - pulse.heard > self.timeout_s:
                found[engine] = f"said nothing for {now - pulse.heard:.0f} s"
            elif now - pulse.moved > self.timeout_s:
                found[engine] = f"made no progress for {now - pulse.moved:.0f} s with {pulse.sign.in_flight} blocks of rollouts"
        return found

    def figures(self, taken: int) -> dict[str, float]:
        finished = sum(pulse.before + pulse.sign.finished for pulse in self.pulses.values())
        alive = sum(time.monotonic() - pulse.heard < ALIVE_S for pulse in self.pulses.values())
        return {"engines": float(alive), "queue/depth": float(max(0, finished - taken))}

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            for engine, why in self.hung(time.monotonic()).items():
                pulse = self.pulses[engine]
                pulse.heard = pulse.moved = math.inf  # nothing is asked of it until it speaks again
                self.report("engine", f"engine {engine[:8]} {why} (rollout.stall_timeout_s={self.timeout_s:g}): it is killed")
                _kill(pulse.sign)


def _kill(sign: Sign) -> None:
    """From its own node, without a word to the process: one that is stopped would not hear Ray's request to end."""
    def end() -> None:
        os.kill(sign.pid, signal.SIGKILL)

    there = NodeAffinitySchedulingStrategy(sign.node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(end).options(scheduling_strategy=there).remote()
