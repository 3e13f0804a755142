"""`srft-ray timeline`: when everything of a run happened, for trace viewers."""

import argparse
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import add_command
from srft_ray.errors import require


def add_timeline(commands: Any) -> None:
    text = "write when everything of a run happened, as a trace that Perfetto (ui.perfetto.dev) opens"
    command = add_command(commands, "timeline", run, text)
    command.add_argument("run", metavar="RUN", help="a run directory")
    first, stop, target = (
        "first step (default 0)",
        "step before which it ends (default the last one)",
        "file (default RUN/timeline.json)",
    )
    command.add_argument("--first", type=int, default=0, metavar="N", help=first)
    command.add_argument("--stop", type=int, default=None, metavar="N", help=stop)
    command.add_argument("--output", default=None, metavar="FILE", help=target)
    command.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> int:
    """Writes the file and says where."""
    from srft_ray.observe.timeline import TRACE, write_trace

    run_dir = Path(arguments.run)
    require(run_dir.is_dir(), f"{run_dir} is no run directory.")
    target = Path(arguments.output) if arguments.output else run_dir / TRACE
    events = write_trace(run_dir, target, arguments.first, arguments.stop)
    require(events > 0, f"{run_dir} has recorded no time of such steps: choose others, or another run.")
    print(f"{events} events in {target}")
    return 0
