"""The arguments of `srft-ray benchmark`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import GOES_ON, add_command
from srft_ray.errors import require

CONFIG_OPTIONS: dict[str, tuple[str, type, Any, str]] = {  # option: config key, type, default, help
    "--temperature": ("evaluation.temperature", float, 0.6, "sampling temperature"),
    "--top-p": ("evaluation.top_p", float, 1.0, "probability mass of nucleus sampling"),
    "--max-new-tokens": ("rollout.max_new_tokens", int, 8192, "longest response, in tokens"),
    "--max-length": ("model.max_length", int, 10240, "longest prompt and response together, in tokens"),
    "--engines": ("rollout.num_engines", int, 1, "number of vLLM engines"),
}


def add_benchmark(commands: Any) -> None:
    text = (
        "evaluate models on published benchmarks: avg@k, pass@k and maj@k with intervals, averages as in the "
        "paper's table, and paired differences between models"
    )
    command = add_command(commands, "benchmark", run, text)
    models = (
        "model directories or hub ids, of which the first is compared with each of the others; and config "
        "keys to change, such as data.template='{prompt}'"
    )
    command.add_argument("models", metavar="MODEL", nargs="*", help=models)
    data = "folder with the benchmarks' files, JSON, JSONL, Parquet or CSV (required)"
    command.add_argument("--data", metavar="FOLDER", required=True, help=data)
    suite = "math, ood, paper or all (default %(default)s)"
    command.add_argument("--suite", default="paper", metavar="SUITE", help=suite)
    sets = "sets by name, separated by commas, such as aime24,arc_c (default those of the suite)"
    command.add_argument("--sets", default=None, metavar="LIST", help=sets)
    samples = "responses for each prompt (default 32 for AIME and AMC, else 1)"
    command.add_argument("--samples", type=int, default=None, metavar="N", help=samples)
    most = "use only so many prompts of each set, the first ones (default all)"
    command.add_argument("--max-prompts", type=int, default=None, metavar="N", help=most)
    for option, (key, kind, default, help_text) in CONFIG_OPTIONS.items():
        metavar = option.removeprefix("--").upper()
        shown = f"{help_text} (default %(default)s)"
        command.add_argument(option, dest=key, type=kind, default=default, metavar=metavar, help=shown)
    folder = "folder for prompts, ledgers and tables (default one in run.dir)"
    command.add_argument("--output", metavar="FOLDER", default=None, help=folder)
    _add_switches(command)
    command.set_defaults(overrides=[], interrupted=GOES_ON)


def _add_switches(command: argparse.ArgumentParser) -> None:
    for option, text in (
        ("--bare", "ask the questions without instructions (default with instructions)"),
        ("--lenient", "show figures of the lenient grader of published scripts too (default strict only)"),
        ("--any-count", "accept sets with another number of rows than published (default refuse them)"),
        ("--check-gold", "sample nothing; judge every gold answer as if it were a response (default off)"),
    ):
        command.add_argument(option, action="store_true", help=text)


def run(options: argparse.Namespace) -> int:
    from srft_ray.data.benchmark_sets import SUITES
    from srft_ray.data.benchmarks import find_benchmarks
    from srft_ray.errors import nearest

    require(options.suite in SUITES, f"There is no suite {options.suite!r}: {nearest(options.suite, SUITES)}")
    names = options.sets.split(",") if options.sets else SUITES[options.suite]
    sets = find_benchmarks(Path(options.data).expanduser(), names, options.any_count)
    require(
        not options.sets or len(sets) == len(names),
        f"{options.data} does not hold {', '.join(name for name in names if name not in sets)}.",
    )
    if options.check_gold:
        from srft_ray.commands.benchmark import check_gold

        text, is_good = check_gold(sets)
        print(text)
        return 0 if is_good else 1
    return _evaluate(options, sets)


def _evaluate(options: argparse.Namespace, sets: dict[str, Any]) -> int:
    from srft_ray.commands.benchmark import Request, benchmark
    from srft_ray.commands.run_settings import unused

    models, overrides = split_words([*options.models, *options.overrides])
    require(len(models) > 0, "benchmark needs at least one model: pass a model directory or a hub id.")
    settings: dict[str, dict[str, Any]] = {}
    for key, _, _, _ in CONFIG_OPTIONS.values():
        section, _, leaf = key.partition(".")
        settings.setdefault(section, {})[leaf] = getattr(options, key)
    request = Request(
        models, sets, options.samples, options.max_prompts, options.bare, options.lenient, settings, overrides
    )
    given = {word.partition("=")[0] for word in overrides}
    for note in filter(None, (unused(model, given) for model in models)):
        print(note, file=sys.stderr)
    print(benchmark(request, Path(options.output) if options.output else None))
    return 0


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Models, and `key=value` overrides: words whose first part is a dotted key."""
    overrides = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    return [word for word in words if word not in overrides], overrides
