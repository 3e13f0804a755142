"""The arguments of `srft-ray compare`."""

import argparse
from typing import Any

from srft_ray.commands.arguments import GOES_ON, add_config_command, add_option, numbers, whole_numbers
from srft_ray.config.load import load_config

COMPARED = "sft,grpo,two_stage,luffy,srft"


def add_compare(commands: Any) -> None:
    text = (
        "train with several algorithms and seeds; show mean and standard deviation of accuracy, entropy, cost"
    )
    command = add_config_command(commands, "compare", run, text)
    names = (
        f"names as in `srft-ray algorithms`, separated by commas (default {COMPARED}, none with --variants)"
    )
    add_option(command, "--algorithms", None, names)
    variants = (
        "YAML file of variants by name, each with the sections that differ; `after: NAME` begins with "
        "the model of another one (default no variants)"
    )
    add_option(command, "--variants", None, variants)
    add_option(command, "--seeds", "0,1,2", "values of run.seed, separated by commas")
    rates = "values of learner.lr of which each method gets the best, separated by commas (default no sweep)"
    add_option(command, "--learning-rates", None, rates)
    add_option(command, "--tuning-seeds", "100", "seeds of the sweep, which are not reported")
    budgets = (
        "budgets in 10^12 operations at which methods are compared, separated by commas (default what the "
        "cheapest run spent)"
    )
    add_option(command, "--tflops", None, budgets)
    add_option(command, "--parallel", 1, "runs at the same time")
    command.set_defaults(interrupted=GOES_ON)


def run(options: argparse.Namespace) -> int:
    from srft_ray.commands.compare import compare
    from srft_ray.commands.compare_tuning import Sweep
    from srft_ray.commands.compare_variants import read_variants

    seeds = whole_numbers("--seeds", options.seeds, least=0)
    config = load_config(options.config, options.overrides)
    variants = read_variants(options.variants) if options.variants else {}
    # The default algorithms are for a comparison without variants.
    names = options.algorithms or ("" if variants else COMPARED)
    algorithms = [name for name in names.split(",") if name]
    sweep = None
    if options.learning_rates is not None:
        rates = numbers("--learning-rates", options.learning_rates)
        sweep = Sweep(rates, whole_numbers("--tuning-seeds", options.tuning_seeds, least=0))
    budgets = numbers("--tflops", options.tflops) if options.tflops is not None else []
    print(f"\n{compare(config, algorithms, seeds, variants, sweep, budgets, options.parallel)}")
    return 0
