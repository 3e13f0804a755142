"""What a long run costs, beside a short one: its start, and each of its steps after many others.

    python benchmarks/long_runs.py

Each size is measured in a process of its own. The first table is of a run of 100 steps and of one of a
million: seconds and memory (MiB) of the plan, bytes of the reader that each actor is sent, microseconds to
find a position, and seconds until the stream's first and hundredth block. The second one is of the records of
a run that has done 100 steps, and one that has done 100,100: milliseconds of what a start does with them, of
what a step adds, and of what a checkpoint does, and the memory (MiB) that all of it takes.
"""

import itertools
import json
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

PLANNED = (100, 1_000_000)
RECORDED = (100, 100_100)
REPEATS = 20
GROUPS = 8
ROWS = 100


def planned(steps):
    import ray

    from algorithms import SFT
    from srft_ray.config.schema import ClusterSection
    from srft_ray.config.settings import Bounds
    from srft_ray.config.training import TrainerSection
    from srft_ray.data.plan import make_plan
    from srft_ray.data.reader import GroupReader, GroupSettings
    from srft_ray.data.stream import make_stream
    from srft_ray.run.cluster import start_ray

    before_mb = memory_mb()
    started = time.perf_counter()
    trainer = TrainerSection(steps=steps, groups_per_step=GROUPS, evaluate_every=10)
    plan = make_plan(trainer, SFT(), Bounds(1, 1), Bounds(1, 1), None, {"heldout": 16})
    data = SimpleNamespace(counts=SimpleNamespace(kept=ROWS))
    reader = GroupReader(GroupSettings(0, 8, 64, 1, {}), SFT(), plan, 0, data, {})
    found = {"plan_s": time.perf_counter() - started, "reader_bytes": len(pickle.dumps(reader))}

    stop = plan.stream_stop(0)
    length = plan.length(0, stop)
    started = time.perf_counter()
    for place in range(1000):
        plan.locate(0, place * length // 1000)
    found["locate_us"] = (time.perf_counter() - started) * 1e3
    found["steps_of_the_stream"] = stop
    found["plan_mb"] = memory_mb() - before_mb

    start_ray(ClusterSection(num_cpus=4), 4)
    before_mb = memory_mb()
    started = time.perf_counter()
    stream = make_stream([(plan, 0)], lambda block: block)
    found["stream_s"] = time.perf_counter() - started
    batches = stream.iter_batches(batch_size=plan.block, prefetch_batches=0)
    for number, _ in enumerate(batches, start=1):
        if number in (1, 100):
            found[f"block_{number}_s"] = time.perf_counter() - started
        if number == 100:
            break
    found["stream_mb"] = memory_mb() - before_mb
    ray.shutdown()
    return found


def recorded(steps):
    """The parts of a start, a step and a checkpoint that touch records of earlier steps."""
    from srft_ray.config.training import TrainerSection
    from srft_ray.observe import journal, ledger, ledger_windows
    from srft_ray.observe.callbacks import Callback
    from srft_ray.observe.follow import RunFollower
    from srft_ray.observe.rewind import rewind
    from srft_ray.train.checkpoint import CheckpointStore
    from srft_ray.train.retention import Retention

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        (run_dir / "groups").mkdir()
        write_records(run_dir, steps)
        store = CheckpointStore.of(run_dir, "run", None)
        trainer = TrainerSection(keep_checkpoints=2, keep_best="reward/mean")
        before_mb = memory_mb()

        def start():
            rewind(run_dir, steps)
            return RunFollower(run_dir, [Callback()], steps, print), Retention(store, trainer)

        follower, retention = start()
        found = {"start_ms": milliseconds(start)}
        numbers = itertools.count(steps)
        groups = [group_of(place) for place in range(GROUPS)]

        def step():
            number = next(numbers)
            ledger.write(run_dir, number, 0, groups)
            journal.append_json(run_dir / journal.METRICS, metrics_of(number))
            follower.poll()

        found["step_ms"] = milliseconds(step)

        def checkpoint():
            number = next(numbers)
            entry = store.write(number, "state", b"state")
            store.commit(number, {"files": {"state": entry}})
            retention.prune()
            journal.record_checkpoint(run_dir, number, store.path(number))
            ledger_windows.merge(run_dir, number)

        checkpoint()
        found["checkpoint_ms"] = milliseconds(checkpoint)
        found["records_mb"] = memory_mb() - before_mb
    return found


def write_records(run_dir, steps):
    """What a run of so many steps leaves: 2 kB of metrics for each, and merged files of the ledger."""
    import pyarrow.parquet as pq

    from srft_ray.observe import ledger, ledger_windows

    with (run_dir / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(metrics_of(step)) + "\n" for step in range(steps))
    with (run_dir / "checkpoints.jsonl").open("w") as file:
        lines = ({"step": step, "path": f"step-{step}", "time": 0.0} for step in range(10, steps + 1, 10))
        file.writelines(json.dumps(line) + "\n" for line in lines)
    window = ledger_windows.WINDOW_STEPS
    last = steps - steps % window
    for step in range(last, steps):
        ledger.write(run_dir, step, 0, [group_of(place) for place in range(GROUPS)])
    rows = pq.read_table(next((run_dir / "groups").glob("*.parquet")))
    for first in range(0, last, window):
        pq.write_table(rows, run_dir / "groups" / f"steps-{first:06d}-{first + window - 1:06d}.parquet")


def metrics_of(step):
    return {"step": step, "reward/mean": step % 7, **{f"metric/of/some/length/{i}": i / 7 for i in range(50)}}


def group_of(place):
    from algorithms import Completion, Group

    ids = list(range(100))
    rollouts = [Completion(i, "rollout", "9 " * 100, ids, [-0.5] * 100, 0) for i in range(8)]
    return Group(0, place, "prompt", ids[:20], "4", completions=rollouts)


def milliseconds(action):
    """The median of several calls."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_table(part, sizes):
    results = []
    for size in sizes:
        command = [sys.executable, __file__, part, str(size)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
    print(f"{f'{part} steps':>20} " + " ".join(f"{size:>14,}" for size in sizes))
    for name in results[0]:
        print(f"{name:>20} " + " ".join(f"{result[name]:>14,.4g}" for result in results))


def main():
    print_table("planned", PLANNED)
    print_table("recorded", RECORDED)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(globals()[sys.argv[1]](int(sys.argv[2]))))
    else:
        main()
