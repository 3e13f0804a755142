"""`srft-ray analyze`: what training changed, as tables and plots."""

import argparse
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import add_command


def add_analyze(commands: Any) -> None:
    text = (
        "write tables and plots of a run: token shift, learning dynamics, curves by verdict, pass@k, "
        "accuracy against cost, changes of the weights, difficulty of the prompts"
    )
    command = add_command(commands, "analyze", run, text)
    command.add_argument("run", metavar="RUN", help="a run directory")
    against = (
        "further models whose distance to each checkpoint is measured (default base and last model only)"
    )
    command.add_argument("--against", metavar="MODEL", nargs="+", default=[], help=against)
    texts = "texts of each kind that models score (default %(default)s)"
    command.add_argument("--texts", type=int, default=48, metavar="N", help=texts)
    folder = "folder for tables and plots (default analysis/ in the run directory)"
    command.add_argument("--output", metavar="FOLDER", default=None, help=folder)
    command.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    from srft_ray.commands.analysis.study import Settings, study

    settings = Settings(against=options.against, texts=options.texts)
    output = Path(options.output) if options.output else None
    page = study(Path(options.run), settings, output)
    print(f"tables and plots are in {page.parent}; {page}")
    return 0
