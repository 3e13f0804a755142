"""`srft-ray export`: evaluations in the formats of other tools."""

import argparse
import json
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import add_command
from srft_ray.errors import nearest, require

FORMATS = ("inspect", "every-eval-ever")


def add_export(commands: Any) -> None:
    text = "write evaluations as logs of Inspect AI, or in the schema of Every Eval Ever"
    command = add_command(commands, "export", run, text)
    folder = "a run directory, or the folder of an evaluation, such as runs/evaluations/NAME"
    command.add_argument("folder", metavar="FOLDER", help=folder)
    formats = f"{' or '.join(FORMATS)} (default %(default)s)"
    command.add_argument("--format", default=FORMATS[0], metavar="FORMAT", help=formats)
    output = "folder for the files (default FOLDER/exports/FORMAT)"
    command.add_argument("--output", default=None, metavar="FOLDER", help=output)
    command.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    for file in export(Path(options.folder), options.format, options.output):
        print(file)
    return 0


def export(folder: Path, form: str = FORMATS[0], output: str | Path | None = None) -> list[Path]:
    """Writes every evaluation of a folder; returns the files.

    Args:
        form: `inspect`, a log for each set and step; `every-eval-ever`, for each set and step an aggregate
            file and one with a line for each response.

    Raises:
        UserError: no such format, or no evaluation in the folder.
    """
    from srft_ray.commands.exports.evaluations import stored_evaluations

    require(form in FORMATS, f"There is no format {form!r}: {nearest(form, FORMATS)}")
    source = folder.expanduser().absolute()
    target = Path(output).expanduser() if output else source / "exports" / form
    evaluations = stored_evaluations(source)
    target.mkdir(parents=True, exist_ok=True)
    write = _write_inspect if form == "inspect" else _write_every_eval_ever
    return [file for evaluation in evaluations for file in write(evaluation, target)]


def _write_inspect(evaluation: Any, target: Path) -> list[Path]:
    from srft_ray.commands.exports.inspect_log import inspect_log

    file = target / f"{evaluation.file_stem}.json"
    # NaN is no JSON; a verifier's rewards are finite.
    file.write_text(json.dumps(inspect_log(evaluation), allow_nan=False))
    return [file]


def _write_every_eval_ever(evaluation: Any, target: Path) -> list[Path]:
    from srft_ray.commands.exports.every_eval_ever import (
        aggregate,
        file_of,
        instance_lines,
        instances_file_of,
    )

    file = target / file_of(evaluation)
    lines_file = target / instances_file_of(evaluation)
    lines = instance_lines(evaluation)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines_file.write_text("".join(lines))
    file.write_text(json.dumps(aggregate(evaluation, lines), indent=1, allow_nan=False))
    return [file, lines_file]
