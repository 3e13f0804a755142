"""`srft-ray report`: one HTML file that shows runs."""

import argparse
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import add_command
from srft_ray.config.load import read_record
from srft_ray.config.schema import ModelSection
from srft_ray.errors import UserError, require


def add_report(commands: Any) -> None:
    text = "write report.html, one file that shows runs in a browser, without a server and without a network"
    command = add_command(commands, "report", run, text)
    runs = "run directories, or folders of evaluations; the first is compared with each of the others"
    command.add_argument("runs", metavar="RUN", nargs="+", help=runs)
    output = "where the page is written (default report.html in the first directory)"
    command.add_argument("--output", metavar="FILE", default=None, help=output)
    everything = "show every group and response (default a sample, by the rule that the page states)"
    command.add_argument("--all", action="store_true", help=everything)
    command.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    target = report([Path(name) for name in options.runs], options.output, options.all)
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
    return 0


def report(run_dirs: list[Path], output: str | Path | None = None, everything: bool = False) -> Path:
    """Writes the page of some runs; returns its path.

    Raises:
        UserError: a directory holds no run.
    """
    from srft_ray.observe.page import FILE, write_page
    from srft_ray.observe.page_data import Limits

    folders = [folder.expanduser().absolute() for folder in run_dirs]
    for folder in folders:
        require((folder / "config.yaml").is_file(), f"{folder} is no run directory: it holds no config.yaml.")
    target = Path(output).expanduser().absolute() if output else folders[0] / FILE
    limits = Limits.none() if everything else Limits()
    pieces = {folder: found for folder in folders if (found := token_pieces_of(folder))}
    return write_page(folders, target, pieces, limits)


def token_pieces_of(folder: Path) -> Any:
    """What gives the texts of a run's tokens; None, and a note, if its tokenizer cannot be loaded."""
    from srft_ray.data.tokenize import load_tokenizer, token_pieces

    given = read_record(folder / "config.yaml").get("model") or {}
    section = ModelSection(
        path=str(given.get("path", "")), trust_remote_code=bool(given.get("trust_remote_code", False))
    )
    try:
        return token_pieces(load_tokenizer(section))
    except UserError as error:
        print(f"report: tokens of {folder.name} are shown by their ids: {error}")
        return None
