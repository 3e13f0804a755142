"""The command line. `ADDED` has its commands.

Exit codes: 0 after success, and for a run that SIGTERM stopped with a checkpoint; 2 for bad arguments, config
or data; 1 for a failed run; 130 after Ctrl-C.

Commands are imported by their handlers, so that `--help` and refusals do not wait for heavy imports.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from srft_ray.commands.analyze import add_analyze
from srft_ray.commands.arguments import (
    EVALUATION_OPTIONS,
    GOES_ON,
    add_command,
    add_config_command,
    add_overrides,
    evaluation_config,
)
from srft_ray.commands.benchmark_cli import add_benchmark
from srft_ray.commands.compare_cli import add_compare
from srft_ray.commands.export import add_export
from srft_ray.commands.extend import add_extend
from srft_ray.commands.merge import add_merge
from srft_ray.commands.report import add_report
from srft_ray.commands.scale_cli import add_scale
from srft_ray.commands.timeline import add_timeline
from srft_ray.commands.trace import add_trace
from srft_ray.commands.warm import add_warm
from srft_ray.config.load import load_config
from srft_ray.errors import RunFailed, UserError
from srft_ray.imports import large_imports
from srft_ray.text import sanitize_text

SUCCESS = 0
FAILED = 1
REFUSED = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Arguments that argparse refuses end in its own SystemExit with code 2, and `--help` in one with code 0.
    """
    options = _parse(parser(), arguments)
    try:
        return options.command(options)
    except UserError as error:
        return _fail(" ".join(str(error).split()), REFUSED)
    except RunFailed as error:
        return _fail(f"run failed: {error}", FAILED)
    except OSError as error:
        return _fail(f"run failed: the operating system reported an error: {error}", FAILED)
    except KeyboardInterrupt:
        return _fail(f"interrupted{getattr(options, 'interrupted', '')}.", INTERRUPTED)


def _fail(message: str, code: int) -> int:
    # It may repeat words of the config or of data.
    print(f"srft-ray: {sanitize_text(message)}", file=sys.stderr)
    return code


def _parse(top: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options and overrides of one command. Overrides may stand before and after options."""
    # argparse does not add words that follow an option to a list of positional arguments.
    options, others = top.parse_known_args(arguments)
    if any(word.startswith("-") or "=" not in word for word in others):
        top.error(f"unrecognized arguments: {' '.join(others)}")
    options.overrides = [*options.overrides, *others]
    return options


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="srft-ray", description="SRFT and related methods for LLM post-training, on Ray."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in ADDED:
        add(commands)
    return top


def add_train(commands: Any) -> None:
    command = add_config_command(commands, "train", train, "train a model as the config says")
    command.set_defaults(
        interrupted=": the same command goes on from the newest checkpoint, if there is one, and repeats the "
        "steps after it; SIGTERM would have written a checkpoint first"
    )


def add_plan(commands: Any) -> None:
    text = "check a config and show its placement, tokens and memory; nothing is started"
    add_config_command(commands, "plan", plan, text)


def add_data(commands: Any) -> None:
    text = "show rows, lengths, dropped rows with the reason, and the verdicts on the demonstrations"
    add_config_command(commands, "data", data, text)


def add_algorithms(commands: Any) -> None:
    text = "list the algorithms with papers and defaults, or show one with its equations, settings and terms"
    command = add_command(commands, "algorithms", algorithms, text)
    one = "show this algorithm, such as srft (default: list all)"
    command.add_argument("name", metavar="NAME", nargs="?", help=one)
    page = "print the page docs/algorithms.md (default: plain text)"
    command.add_argument("--markdown", action="store_true", help=page)
    command.set_defaults(overrides=[])


def add_evaluate(commands: Any) -> None:
    text = "show avg@k and pass@k of a model on a data set, with 95 % intervals"
    # SUPPRESS: an option that is not given must not overwrite the default of its config key.
    command = add_command(commands, "evaluate", evaluate, text, argument_default=argparse.SUPPRESS)
    model = "a model directory, such as runs/NAME/checkpoints/step-N/hf, or a hub id"
    command.add_argument("model.path", metavar="MODEL", help=model)
    for option, (key, kind, help_text) in EVALUATION_OPTIONS.items():
        metavar = option.removeprefix("--").upper()
        required = option == "--data"
        command.add_argument(option, dest=key, type=kind, metavar=metavar, required=required, help=help_text)
    output = "folder of the evaluation's ledger (default: one in run.dir named after model and settings)"
    command.add_argument("--output", dest="output", metavar="FOLDER", help=output, default=None)
    add_overrides(command, "any other config key, such as verifier.path=judge.py:judge")
    command.set_defaults(interrupted=GOES_ON)


# In the order in which `--help` lists them.
ADDED = (
    add_train,
    add_evaluate,
    add_benchmark,
    add_report,
    add_trace,
    add_timeline,
    add_analyze,
    add_merge,
    add_extend,
    add_export,
    add_compare,
    add_scale,
    add_plan,
    add_data,
    add_algorithms,
    add_warm,
)


def train(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    with large_imports():
        from srft_ray.observe.report import table
        from srft_ray.run.driver import fit

    result = fit(config)
    if result.stopped:
        print(
            f"stopped by {result.stopped} after step {result.steps}; every finished step is kept, and the "
            "same command continues."
        )
        return SUCCESS
    summary = result.summary
    if summary["evaluations"]:
        print(f"\n{table(summary)}\n")
    print(
        f"finished {summary['steps']} steps in {summary['seconds']:.0f} s; model in {result.model}; "
        f"plots in {result.run_dir / 'plots'}"
    )
    return SUCCESS


def plan(options: argparse.Namespace) -> int:
    from srft_ray.commands.plan import describe

    print(describe(load_config(options.config, options.overrides)))
    return SUCCESS


def data(options: argparse.Namespace) -> int:
    from srft_ray.commands.inspect_data import describe

    print(describe(load_config(options.config, options.overrides)))
    return SUCCESS


def algorithms(options: argparse.Namespace) -> int:
    from srft_ray.commands import list_algorithms as catalog

    print(catalog.markdown().rstrip() if options.markdown else catalog.describe(options.name))
    return SUCCESS


def evaluate(options: argparse.Namespace) -> int:
    from srft_ray.commands.evaluate import evaluate_model
    from srft_ray.observe.progress import evaluation_line

    done = evaluate_model(evaluation_config(options), folder=options.output)
    for record in done.records:
        print(evaluation_line(record).removeprefix("evaluation after step 0: "))
    print(f"every response is in {done.folder / 'evaluations'}")
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
