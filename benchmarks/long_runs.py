"""What a long run costs at its start: plan, reader and stream of 100 steps and of a million, side by side.

    python benchmarks/long_runs.py

Each size is measured in a process of its own: seconds and memory (MiB) of the plan, bytes of the reader that
each actor is sent, microseconds to find a position, and seconds until the stream's first and hundredth block.
"""

import json
import pickle
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

STEPS = (100, 1_000_000)
GROUPS = 8
ROWS = 100


def measure(steps):
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
    stream = make_stream(plan, 0, lambda block: block)
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


def memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    results = []
    for steps in STEPS:
        command = [sys.executable, __file__, str(steps)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
    print(f"{'':>20} " + " ".join(f"{steps:>14,}" for steps in STEPS))
    for name in results[0]:
        print(f"{name:>20} " + " ".join(f"{result[name]:>14,.4g}" for result in results))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
