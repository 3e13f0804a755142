"""The command line: train, evaluate, plan, data. Exit code 0 on success, 2 on bad config or data, 1 on a failed run."""
import argparse
import sys
from collections.abc import Sequence

from srft_ray.config import Config, load_config, make_config
from srft_ray.errors import UserError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except UserError as error:
        print(f"srft-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("srft-ray: interrupted; the run directory keeps every finished step, and the same command continues from the newest "
              "checkpoint.", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="srft-ray", description="SRFT and its relatives for LLM post-training, on Ray.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
            ("train", train, "train as the config says"),
            ("plan", plan, "check a config and show placement, tokens and memory; starts nothing"),
            ("data", data, "show rows, lengths, what is dropped and why, and what the verifier says of the demonstrations")):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in examples/")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.steps=10 learner.num_workers=2")
        sub.set_defaults(command=command)
    _add_evaluate(commands)
    return top


def _add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "avg@k and pass@k of a model on a data set, with 95 % intervals"
    sub = commands.add_parser("evaluate", help=text, description=text)
    sub.add_argument("model", metavar="MODEL", help="a model directory, such as runs/NAME/checkpoints/step-N/hf")
    sub.add_argument("--data", required=True, help="a data file, or families of built-in tasks with --format tasks")
    sub.add_argument("--format", default="auto")
    sub.add_argument("--split", default="heldout", help="of built-in tasks: heldout (default) or train")
    sub.add_argument("--samples", type=int, default=8, help="k, samples per prompt (default 8)")
    sub.add_argument("--max-prompts", type=int, default=None)
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--max-new-tokens", type=int, default=512)
    sub.add_argument("--max-length", type=int, default=2048, help="of prompt and response together")
    sub.add_argument("--engines", type=int, default=1)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="any other config key, such as verifier.path=judge.py:judge")
    sub.set_defaults(command=evaluate)


def train(options: argparse.Namespace) -> int:
    from srft_ray.driver import RunFailed, fit
    from srft_ray.report import table
    config = load_config(options.config, options.overrides)
    try:
        result = fit(config)
    except RunFailed as error:
        print(f"srft-ray: run failed: {error}", file=sys.stderr)
        return 1
    if result.summary["evaluations"]:
        print(f"\n{table(result.summary['evaluations'])}\n")
    print(f"finished {result.summary['steps']} steps in {result.summary['seconds']:.0f} s; model in {result.model}; plots in {result.run_dir / 'plots'}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from srft_ray.evaluation import evaluate as run
    from srft_ray.progress import evaluation_line
    for record in run(evaluation_config(options)):
        print(evaluation_line(record).removeprefix("evaluation after step 0: "))
    return 0


def evaluation_config(options: argparse.Namespace) -> Config:
    from omegaconf import OmegaConf
    values = OmegaConf.create({
        "model": {"path": options.model, "max_length": options.max_length},
        "data": {"path": options.data, "format": options.format, "split": options.split, "size": options.max_prompts or 256},
        "rollout": {"num_engines": options.engines, "max_new_tokens": options.max_new_tokens},
        "evaluation": {"data": {"data": {}}, "samples": options.samples, "max_prompts": options.max_prompts,
                       "temperature": options.temperature, "top_p": options.top_p}})
    return make_config(OmegaConf.to_container(OmegaConf.merge(values, OmegaConf.from_dotlist(options.overrides))))


def plan(options: argparse.Namespace) -> int:
    from srft_ray.estimate import describe
    print(describe(load_config(options.config, options.overrides)))
    return 0


def data(options: argparse.Namespace) -> int:
    from srft_ray.data.inspect import describe
    print(describe(load_config(options.config, options.overrides)))
    return 0
