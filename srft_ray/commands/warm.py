"""`srft-ray warm`: a Ray, and a fork server for its workers, that several commands share."""

import argparse
import os
import shutil
import signal
import subprocess
from typing import Any

from srft_ray.commands.arguments import add_command
from srft_ray.errors import require

LOGICAL_CPUS = 8  # at least: most runs of a small machine ask for 4 to 6


def add_warm(commands: Any) -> None:
    text = "run a program, such as bash, whose commands share one Ray on this machine, and so start faster"
    command = add_command(commands, "warm", warm, text)
    cpus = f"logical CPUs of that Ray (default: those of the machine, at least {LOGICAL_CPUS})"
    command.add_argument("--num-cpus", type=int, default=None, metavar="N", help=cpus)
    words = "program and arguments; everything ends when it does"
    command.add_argument("words", nargs=argparse.REMAINDER, metavar="PROGRAM", help=words)
    command.set_defaults(overrides=[])


def warm(options: argparse.Namespace) -> int:
    """Returns the exit code of the program."""
    words = options.words
    require(words, "Nothing to run: name a program, such as `srft-ray warm bash`.")
    require(bool(shutil.which(words[0])), f"{words[0]} is no program that can be run.")
    import ray

    from srft_ray.config.schema import ClusterSection
    from srft_ray.run.cluster import cluster_address, start_ray, stop_ray
    from srft_ray.run.preloading import variables_for_commands

    cluster = ClusterSection(num_cpus=options.num_cpus or max(LOGICAL_CPUS, os.cpu_count() or 1))
    address = cluster_address(cluster)
    require(not address, f"RAY_ADDRESS={address} is set: commands already share the Ray there.")
    start_ray(cluster, cpus=1, many_jobs=True)
    try:
        here = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address} | variables_for_commands()
        return _until_end(subprocess.Popen(words, env=os.environ | here)) % 256
    finally:
        stop_ray()


def _until_end(program: subprocess.Popen[bytes]) -> int:
    """What the program returns. It decides what Ctrl-C and SIGTERM are to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the program, too
    signal.signal(signal.SIGTERM, lambda *_: program.terminate())
    return program.wait()
