"""The parts that `cli` builds its commands from: options, overrides, and the values that they stand for."""

import argparse
from collections.abc import Callable
from typing import Any

from srft_ray.config.load import make_config
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, require

Handler = Callable[[argparse.Namespace], int]
GOES_ON = ": the same command goes on, and repeats nothing that is finished"  # said after Ctrl-C
EVALUATION_OPTIONS: dict[str, tuple[str, type, str]] = {  # option: config key, type, help
    "--data": (
        "data.path",
        str,
        "a data file, or with --format tasks families of built-in tasks, such as sums+products (required)",
    ),
    "--format": ("data.format", str, "auto, jsonl, json, parquet, hf or tasks (default auto)"),
    "--split": ("data.split", str, "split of built-in tasks: heldout or train (default heldout)"),
    "--samples": ("evaluation.samples", int, "responses sampled for each prompt, the k of avg@k (default 8)"),
    "--max-prompts": (
        "evaluation.max_prompts",
        int,
        "use only so many prompts, the first of the set (default all; 256 of built-in tasks)",
    ),
    "--temperature": ("evaluation.temperature", float, "sampling temperature (default 1)"),
    "--top-p": ("evaluation.top_p", float, "probability mass of nucleus sampling, above 0 to 1 (default 1)"),
    "--max-new-tokens": ("rollout.max_new_tokens", int, "longest response, in tokens (default 512)"),
    "--max-length": (
        "model.max_length",
        int,
        "longest prompt and response together, in tokens (default 2048)",
    ),
    "--engines": ("rollout.num_engines", int, "number of vLLM engines (default 1)"),
}


def add_command(
    commands: Any, name: str, handler: Handler, text: str, **options: Any
) -> argparse.ArgumentParser:
    """Adds a command; `options` are passed to argparse."""
    # argparse formats `help` with the % operator, but not `description`.
    command = commands.add_parser(name, help=text.replace("%", "%%"), description=text, **options)
    command.set_defaults(command=handler)
    return command


def add_config_command(commands: Any, name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
    """Adds a command that takes a config file and overrides."""
    command = add_command(commands, name, handler, text)
    command.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in examples/")
    add_overrides(command, "config keys to change, such as trainer.steps=10 learner.num_workers=2")
    return command
    return command


def add_overrides(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help=text, default=[])


def add_option(
    command: argparse.ArgumentParser,
    name: str,
    default: str | int | float | None,
    text: str,
    kind: type | None = None,
) -> None:
    """Adds an option, of the default's type unless `kind` is given.

    The default is added to the help text. Without a default the text itself must say what is taken.
    """
    if default is not None:
        text = f"{text} (default %(default)s)"
    kind = kind or type(default or "")
    metavar = {int: "N", float: "X"}.get(kind, "LIST")
    command.add_argument(name, type=kind, default=default, metavar=metavar, help=text)


def whole_numbers(option: str, text: str, least: int) -> list[int]:
    """The different numbers of a list such as 0,1,2, in its order."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text} are not whole numbers separated by commas, such as 1,2.") from error
    require(min(numbers) >= least, f"{option} {text} must be at least {least} each.")
    return list(dict.fromkeys(numbers))


def numbers(option: str, text: str) -> list[float]:
    """The different numbers of a list such as 1e-6,3e-6, in its order."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text} are not numbers separated by commas, such as 1e-6,3e-6.") from error
    return list(dict.fromkeys(found))


def evaluation_config(options: argparse.Namespace) -> Config:
    """A config with one evaluation set, named data, that is read as the `data` section says.

    A model that a run has written is evaluated with the settings of that run, unless others are given.
    """
    from srft_ray.commands.run_settings import sentence, settings_of_run

    values: dict[str, dict[str, Any]] = {
        "model": {},
        "rollout": {},
        "data": {"split": "heldout"},
        "evaluation": {"data": {"data": {}}},
    }
    for key, value in vars(options).items():
        section, _, leaf = key.partition(".")
        if leaf:
            values[section][leaf] = value
    given = {key for key in vars(options) if "." in key} | {
        word.partition("=")[0] for word in options.overrides
    }
    taken = settings_of_run(values["model"]["path"], given)
    if taken:
        print(sentence(values["model"]["path"], taken))
    for key, value in taken.items():
        section, _, leaf = key.partition(".")
        values.setdefault(section, {})[leaf] = value
    # Built-in tasks are generated: their number is the size of the set.
    values["data"]["size"] = values["evaluation"].get("max_prompts", 256)
    return make_config(values, options.overrides)
