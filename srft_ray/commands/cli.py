"""The command line: train, evaluate, compare, scale, plan, data, algorithms. Exit code 0 on success, 2 on bad config or data, 1 on a failed run."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from srft_ray.config.schema import load_config, make_config, require
from srft_ray.errors import RunFailed, UserError

INTERRUPTED = 130
EVALUATE = {  # option: config key, type, help
    "--data": ("data.path", str, "a data file, or families of built-in tasks with --format tasks"),
    "--format": ("data.format", str, "auto (default), jsonl, json, parquet, hf or tasks"),
    "--split": ("data.split", str, "of built-in tasks: heldout (default) or train"),
    "--samples": ("evaluation.samples", int, "k, samples per prompt (default 8)"),
    "--max-prompts": (
        "evaluation.max_prompts",
        int,
        "the first ones of the set (default all, or 256 of built-in tasks)",
    ),
    "--temperature": ("evaluation.temperature", float, "default 1"),
    "--top-p": ("evaluation.top_p", float, "default 1"),
    "--max-new-tokens": ("rollout.max_new_tokens", int, "default 512"),
    "--max-length": ("model.max_length", int, "of prompt and response together (default 2048)"),
    "--engines": ("rollout.num_engines", int, "default 1"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    top = parser()
    options, more = top.parse_known_args(arguments)
    if any(word.startswith("-") or "=" not in word for word in more):
        top.error(f"unrecognized arguments: {' '.join(more)}")
    options.overrides += (
        more  # key=value words after an option, which argparse does not give to a list of positionals
    )
    try:
        return options.command(options)
    except UserError as error:
        print(f"srft-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"srft-ray: run failed: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"srft-ray: run failed: the system refused: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "srft-ray: interrupted; every finished step is kept, and the same command continues from the newest checkpoint.",
            file=sys.stderr,
        )
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="srft-ray", description="SRFT and its relatives for LLM post-training, on Ray."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("train", train, "train as the config says"),
        (
            "compare",
            compare,
            "train with several algorithms and seeds and show accuracy, entropy and cost as mean ± standard deviation",
        ),
        (
            "scale",
            scale,
            "measure the step time for numbers of engines and learners, model it, and predict the best split",
        ),
        (
            "plan",
            partial(describe, "srft_ray.commands.plan"),
            "check a config and show placement, tokens and memory; starts nothing",
        ),
        (
            "data",
            partial(describe, "srft_ray.commands.inspect_data"),
            "show rows, lengths, what is dropped and why, and what the verifier says of the demonstrations",
        ),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in examples/")
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="such as trainer.steps=10 learner.num_workers=2"
        )
        sub.set_defaults(command=command)
    sub = commands.choices["compare"]
    sub.add_argument(
        "--algorithms",
        default="sft,grpo,two_stage,luffy,srft",
        help="names, as in `srft-ray algorithms` (default %(default)s)",
    )
    sub.add_argument("--seeds", default="0,1,2", help="default %(default)s")
    sub = commands.choices["scale"]
    sub.add_argument("--engines", default="1,2", help="default %(default)s")
    sub.add_argument("--learners", default="1,2", help="default %(default)s")
    sub.add_argument("--staleness", help="such as 0,1 (default: rollout.max_staleness of the config)")
    sub.add_argument("--steps", type=int, default=12, help="of each run (default %(default)s)")
    sub.add_argument(
        "--devices", type=int, help="to split between engines and learners (default: the most that was run)"
    )
    text = "the algorithms with their papers and defaults, or one with its equations, settings and terms"
    sub = commands.add_parser("algorithms", help=text, description=text)
    sub.add_argument("name", metavar="NAME", nargs="?", help="such as srft")
    sub.add_argument("--markdown", action="store_true", help="all of them as docs/algorithms.md")
    sub.set_defaults(command=algorithms, overrides=[])
    text = "avg@k and pass@k of a model on a data set, with 95 % intervals"
    sub = commands.add_parser("evaluate", help=text, description=text, argument_default=argparse.SUPPRESS)
    sub.add_argument(
        "model.path", metavar="MODEL", help="a model directory, such as runs/NAME/checkpoints/step-N/hf"
    )
    for option, (key, kind, text) in EVALUATE.items():
        sub.add_argument(
            option, dest=key, type=kind, metavar=option[2:].upper(), required=option == "--data", help=text
        )
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="any other config key, such as verifier.path=judge.py:judge",
        default=[],
    )
    sub.set_defaults(command=evaluate)
    return top


def train(options: argparse.Namespace) -> int:
    from srft_ray.observe.report import table
    from srft_ray.run.driver import fit

    result = fit(load_config(options.config, options.overrides))
    summary = result.summary
    if result.stopped:
        print(
            f"stopped by {result.stopped} after step {result.steps}; every finished step is kept, and the same command continues."
        )
        return 0
    if summary["evaluations"]:
        print(f"\n{table(summary['evaluations'])}\n")
    print(
        f"finished {summary['steps']} steps in {summary['seconds']:.0f} s; model in {result.model}; plots in {result.run_dir / 'plots'}"
    )
    return 0


def compare(options: argparse.Namespace) -> int:
    from srft_ray.commands.compare import compare as run

    names, seeds = options.algorithms.split(","), _whole_numbers("--seeds", options.seeds, least=0)
    print(f"\n{run(load_config(options.config, options.overrides), names, seeds)}")
    return 0


def scale(options: argparse.Namespace) -> int:
    from srft_ray.commands.scale import scale as run

    counts = [
        _whole_numbers(name, text, least=1)
        for name, text in (("--engines", options.engines), ("--learners", options.learners))
    ]
    staleness = (
        None if options.staleness is None else _whole_numbers("--staleness", options.staleness, least=0)
    )
    print(
        f"\n{run(load_config(options.config, options.overrides), *counts, staleness, options.steps, options.devices)}"
    )
    return 0


def _whole_numbers(option: str, text: str, least: int) -> list[int]:
    """The different numbers of a list such as 0,1,2."""
    try:
        numbers = list(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError as error:
        raise UserError(f"{option} {text} are not whole numbers separated by commas, such as 1,2.") from error
    require(min(numbers) >= least, f"{option} {text} must be at least {least} each.")
    return numbers


def algorithms(options: argparse.Namespace) -> int:
    from srft_ray.commands import list_algorithms as catalog

    print(catalog.markdown().rstrip() if options.markdown else catalog.describe(options.name))
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from srft_ray.commands.evaluate import evaluate as run
    from srft_ray.observe.progress import evaluation_line

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
    values["data"]["size"] = values["evaluation"].get("max_prompts", 256)
    for record in run(make_config(values, options.overrides)):
        print(evaluation_line(record).removeprefix("evaluation after step 0: "))
    return 0


def describe(module: str, options: argparse.Namespace) -> int:
    print(import_module(module).describe(load_config(options.config, options.overrides)))
    return 0
