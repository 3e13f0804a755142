"""`srft-ray extend`: a copy of a model with room for more positions."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import add_command
from srft_ray.errors import UserError, require

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"


def add_extend(commands: Any) -> None:
    text = "copy a model with a longer context: another base of its rotary embeddings, and more positions"
    command = add_command(commands, "extend", run, text)
    command.add_argument("model", metavar="MODEL", help="a model directory")
    theta = "base of the rotary embeddings, such as 40000 (required)"
    command.add_argument("--rope-theta", metavar="THETA", type=float, required=True, help=theta)
    positions = "longest prompt and response together that the copy takes, in tokens (required)"
    command.add_argument("--positions", metavar="N", type=int, required=True, help=positions)
    output = (
        "model directory to write; its weights are links to those of MODEL where that is possible (required)"
    )
    command.add_argument("--output", metavar="FOLDER", required=True, help=output)
    command.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    model, target = Path(options.model).expanduser(), Path(options.output).expanduser()
    before = extend(model, target, options.rope_theta, options.positions)
    print(
        f"positions {before['positions']} -> {options.positions}, rope theta {before['rope_theta']:g} -> "
        f"{options.rope_theta:g}; model in {target}. It has to be trained on long sequences to use them well."
    )
    return 0


def extend(model: Path, target: Path, rope_theta: float, positions: int) -> dict[str, float]:
    """Writes the copy; returns what `rope_theta` and `positions` were.

    Raises:
        UserError: `model` is no directory with plain rotary embeddings, does not get longer, or `target`
            exists.
    """
    require((model / CONFIG).is_file(), f"{model} is no model directory: it has no {CONFIG}.")
    require(not target.exists(), f"{target} exists: choose another --output.")
    require(0 < rope_theta < float("inf"), f"--rope-theta must be above 0, not {rope_theta}.")
    config = _read(model / CONFIG)
    before = {"positions": config.get("max_position_embeddings"), "rope_theta": _theta(model, config)}
    require(
        isinstance(before["positions"], int),
        f"{model / CONFIG} has no max_position_embeddings: its context cannot be extended so.",
    )
    require(
        positions > before["positions"],
        f"--positions must be above the {before['positions']} that {model} has, not {positions}.",
    )
    config["max_position_embeddings"] = positions
    for place in (config, config.get("rope_parameters") or {}):
        if "rope_theta" in place:
            place["rope_theta"] = rope_theta
    _write(model, target, {CONFIG: config, **_tokenizer(model, positions)})
    return before


def _theta(model: Path, config: dict[str, Any]) -> float:
    """The base of the rotary embeddings, which must not be scaled in another way."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    require(
        kind == "default",
        f"{model / CONFIG} scales its rotary embeddings by {kind}: change its factors there instead.",
    )
    theta = parameters.get("rope_theta", config.get("rope_theta"))
    require(theta is not None, f"{model / CONFIG} has no rope_theta: its context cannot be extended so.")
    return theta


def _tokenizer(model: Path, positions: int) -> dict[str, Any]:
    """The tokenizer's settings if they would cut what the model can take."""
    file = model / TOKENIZER
    settings = _read(file) if file.is_file() else {}
    if (settings.get("model_max_length") or positions) >= positions:
        return {}
    return {TOKENIZER: settings | {"model_max_length": positions}}


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    require(isinstance(found, dict), f"{file} holds no JSON object.")
    return found


def _write(model: Path, target: Path, changed: dict[str, Any]) -> None:
    """The copy appears whole or not at all."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in sorted(path for path in model.iterdir() if path.is_file()):
        if file.name in changed:
            (part / file.name).write_text(json.dumps(changed[file.name], indent=2) + "\n", encoding="utf-8")
        else:
            _link(file.resolve(), part / file.name)
    part.replace(target)


def _link(file: Path, link: Path) -> None:
    try:
        os.link(file, link)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, link)
