"""`srft-ray merge`: one model from several that were trained from the same one."""

import argparse
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import add_command, add_option


def add_merge(commands: Any) -> None:
    text = "merge models that were trained from the same one, by mean or by selection of parameters"
    command = add_command(commands, "merge", run, text)
    command.add_argument("base", metavar="BASE", help="the model directory that all were trained from")
    models = "model directories to merge, such as runs/NAME/checkpoints/step-N/hf; at least two"
    command.add_argument("models", metavar="MODEL", nargs="+", help=models)
    output = "folder that is to hold the merged model in hf/ (required)"
    command.add_argument("--output", metavar="FOLDER", required=True, help=output)
    method = (
        "mean of the models, or select: each number is that of one model, drawn among those that changed it "
        "(default select)"
    )
    command.add_argument("--method", choices=("mean", "select"), default="select", help=method)
    add_option(command, "--seed", 0, "of the selection; the same seed gives the same model")
    command.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    from srft_ray.commands.model_merge import merge

    target = Path(options.output).expanduser()
    models = [Path(model).expanduser() for model in options.models]
    done = merge(Path(options.base).expanduser(), models, target, options.method, options.seed)
    print(
        f"merged {len(models)} models by {options.method}; of {done.numbers} numbers {done.share:.1%} differ "
        f"from the base; model in {done.folder}"
    )
    return 0
