"""From the command to the first update: seconds, and CPU seconds by process.

    python benchmarks/start_up.py [--repeats N] [SETTING…]
    srft-ray warm python benchmarks/start_up.py

It trains some steps of the quickstart's config, without evaluation, in a Ray that the command starts, and
prints the median of several starts. CPU seconds are those that the processes of a start had taken when the
first update was recorded. The second line is for starts on a Ray that is there already; its processes are
forks, and are not counted.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples/quickstart.yaml"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLL_S = 0.05
# What a process is called in the table, by a part of its command line; the first that fits.
KINDS = {
    "ray::MapWorker": "engine",
    "ray::RayTrainWorker": "learner",
    "srft_ray train": "driver",
    "srft_ray.verify": "verifiers",
    "fork_server/server.py": "fork server",
    "fork_server/client.py": "what stands for forks",
    "ray::TrainController": "Ray Train's controller",
    "ray::SplitCoordinator": "Ray Data's executor",
    "ray::DatasetManager": "Ray Train's data sets",
    "ray::Coordinator": "coordinator",
    "ray::IDLE": "processes that Ray started in advance",
}
OTHER = "the rest of Ray"


def start(folder, more):
    """(seconds until the first update is recorded, CPU seconds by kind of process)."""
    token = f"SRFT_BENCHMARK={folder}"
    name, _, value = token.partition("=")
    settings = [f"run.dir={folder}", "run.name=run", "trainer.steps=4", "trainer.evaluate_every=0", *more]
    command = [sys.executable, "-m", "srft_ray", "train", str(CONFIG), *settings]
    started = time.monotonic()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {name: value}, stdout=quiet, stderr=quiet)
    metrics = folder / "run/metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before its first update")
        time.sleep(POLL_S)
    seconds = time.monotonic() - started
    cpu = cpu_seconds(token)
    process.wait()
    return seconds, cpu


def cpu_seconds(token):
    found = Counter()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() not in (entry / "environ").read_bytes():
                continue
            command = (entry / "cmdline").read_text().replace("\0", " ")
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        kind = next((kind for part, kind in KINDS.items() if part in command), OTHER)
        found[kind] += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="starts (default %(default)s)")
    parser.add_argument("settings", nargs="*", help="such as cluster.fork_server=false")
    options = parser.parse_args()
    repeats = options.repeats
    found = []
    for number in range(repeats):
        folder = Path(tempfile.mkdtemp(prefix="start-up-"))
        found.append(start(folder, options.settings))
        shutil.rmtree(folder)
        print(f"start {number + 1}: {found[-1][0]:.1f} s, {found[-1][1].total():.1f} s of CPU", flush=True)
    print(f"\n{'command to first update':>40} {statistics.median(seconds for seconds, _ in found):6.1f} s")
    for kind in [*KINDS.values(), OTHER]:
        if any(cpu[kind] for _, cpu in found):
            print(f"{kind:>40} {statistics.median(cpu[kind] for _, cpu in found):6.1f} s of CPU")


if __name__ == "__main__":
    main()
