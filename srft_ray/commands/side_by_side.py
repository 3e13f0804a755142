"""Several runs at the same time on one Ray, in processes that each train a part of them one after another.

A process reads its runs from the standard input. What it prints is printed here, behind the name of the run.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

import ray
from ray import cloudpickle

from srft_ray.commands.variants import Variant, complete_all, unfinished
from srft_ray.errors import RunFailed, UserError
from srft_ray.run.cluster import start_ray
from srft_ray.run.placement import Placement, check_totals, choose_placement, demand, resolve_device

POLL_INTERVAL_S = 0.1
END_TIMEOUT_S = 60.0  # that runs have to end in order when this process is interrupted


def train_all(runs: Sequence[Variant], at_a_time: int, later: Sequence[Variant] = ()) -> None:
    """Trains what is not finished, in this process if it is one run at a time.

    When one fails, no further one is started after it in the same process. SIGTERM is passed on.

    Args:
        later: runs that a further call trains, and that the cluster must have room for too.

    Raises:
        UserError: the cluster has no room for so many.
        RunFailed: runs failed or were asked to stop, after the others that had begun have ended.
    """
    waiting = unfinished(runs)
    if not waiting:
        return
    _start_room([*waiting, *later], at_a_time)
    if at_a_time == 1:
        complete_all(waiting)
    else:
        _train_in_processes(parts_of(waiting, at_a_time))


def parts_of(runs: Sequence[Variant], count: int) -> list[Sequence[Variant]]:
    """Nearly equal parts of neighbours.

    Neighbours have the same seed and other methods: such runs share the evaluation of their first model, and
    no process has all runs of the slowest method.
    """
    ends = [len(runs) * number // count for number in range(count + 1)]
    return [runs[first:end] for first, end in pairwise(ends) if first < end]


def _start_room(runs: Sequence[Variant], at_a_time: int) -> None:
    """Connects to the cluster, or starts a Ray on this machine with room for any so many of the runs."""
    demands = [demand(run.resolved, Placement("cpu"), engines=True) for run in runs]
    largest = max(demands, key=lambda needed: needed.cpus).times(at_a_time)
    start_ray(runs[0].config.cluster, largest.cpus, largest.custom)
    if at_a_time == 1:
        return  # each run looks for itself
    gpus = ray.cluster_resources().get("GPU", 0.0)
    for run in runs:
        device = resolve_device(run.config.run.device)
        placement = choose_placement(run.resolved, device, engines=True, gpus=gpus)
        check_totals(demand(run.resolved, placement, engines=True).times(at_a_time))


def _train_in_processes(parts: Sequence[Sequence[Variant]]) -> None:
    """Trains each part in a process of its own."""
    active: list[_RunsProcess] = []
    problems: list[str] = []
    with _passing_on(active) as stopped:
        try:
            for runs in parts:
                if not stopped.is_set():
                    active.append(_RunsProcess(runs))
            while active:
                for one in [one for one in active if one.ended()]:
                    active.remove(one)
                    problems += [one.problem] if one.problem else []
                time.sleep(POLL_INTERVAL_S)
        finally:
            for one in active:
                one.end()
    if problems:
        raise RunFailed("; ".join(problems))
    if stopped.is_set():
        raise RunFailed("stopped by SIGTERM before all runs had begun; the same command continues")


@contextmanager
def _passing_on(active: Sequence["_RunsProcess"]) -> Iterator[threading.Event]:
    """SIGTERM reaches the active processes too, whose runs then end in order; gives whether it came."""
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        for one in active:
            one.process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


class _RunsProcess:
    """Runs that a process of its own trains one after another.

    Attributes:
        name: of the run that is trained.
        problem: why it failed; empty while it goes on, and after all ended well.
    """

    def __init__(self, runs: Sequence[Variant]) -> None:
        self._names = {run.config.run.name for run in runs}
        self.name = runs[0].config.run.name
        self.problem = ""
        address = ray.get_runtime_context().gcs_address
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._last = ""
        self._printer = threading.Thread(target=self._print, args=(cloudpickle.dumps(runs),), daemon=True)
        self._printer.start()

    def _print(self, runs: bytes) -> None:
        with suppress(OSError):  # it has died, and its exit code will say so
            self.process.stdin.write(runs)
            self.process.stdin.flush()  # it stays open as long as this process lives
        for line in self.process.stdout:
            self._last = line.decode(errors="replace").rstrip()
            # The first line of each run begins with its name.
            begun = self._last.partition(": ")[0]
            self.name = begun if begun in self._names else self.name
            with suppress(OSError):  # nobody reads any more (`| head`), and the run goes on
                print(f"{self.name} | {self._last}", flush=True)

    def ended(self) -> bool:
        code = self.process.poll()
        if code:
            self._printer.join()
            how = f"ended by signal {-code}" if code < 0 else f"failed: {self._last}"
            self.problem = f"the run {self.name} {how}"
        return code is not None

    def end(self) -> None:
        """In order if it does so soon."""
        self.process.terminate()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()


def main() -> int:
    """Trains the runs that the standard input holds; returns the exit code."""
    runs: Sequence[Variant] = cloudpickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        complete_all(runs)
    except (UserError, RunFailed, OSError) as error:
        print(" ".join(str(error).split()))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_parent() -> None:
    """The Ray that this run is on may end with its parent, and the next command is to find the run's lock
    free."""
    os.read(sys.stdin.fileno(), 1)  # a buffered read holds a lock that the interpreter needs to end
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
