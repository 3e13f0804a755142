"""The arguments of `srft-ray scale`."""

import argparse
from typing import Any

from srft_ray.commands.arguments import add_config_command, add_option, whole_numbers
from srft_ray.config.load import load_config


def add_scale(commands: Any) -> None:
    text = (
        "measure the step time for several numbers of engines and learners; predict the best split of devices"
    )
    command = add_config_command(commands, "scale", scale, text)
    add_option(command, "--engines", "1,2", "numbers of vLLM engines, separated by commas")
    add_option(command, "--learners", "1,2", "numbers of learners, separated by commas")
    levels = "values of rollout.max_staleness in versions, separated by commas (default that of the config)"
    add_option(command, "--staleness", None, levels)
    add_option(command, "--steps", 12, "training steps of each run")
    devices = "devices to split between engines and learners (default the largest number that a run used)"
    add_option(command, "--devices", None, devices, kind=int)
    simulate = (
        "start no engine and no learner: threads that wait ask the real coordinator what up to thousands of "
        "them would ask it (default: real runs)"
    )
    command.add_argument("--simulate", action="store_true", help=simulate)
    add_option(
        command,
        "--generation-seconds",
        7.0,
        "of the slowest simulated block of rollouts; others take up to a tenth less",
    )
    add_option(command, "--learner-seconds", 3.0, "of a simulated update")
    compress = "times that simulated steps are shorter than stated; heartbeats keep their time"
    add_option(command, "--compress", 1.0, compress)
    pools = "sizes of pools of Ray Data whose scheduling is measured beside a simulation (default none)"
    add_option(command, "--stream", None, pools)


def scale(options: argparse.Namespace) -> int:
    engines = whole_numbers("--engines", options.engines, least=1)
    learners = whole_numbers("--learners", options.learners, least=1)
    staleness = None
    if options.staleness is not None:
        staleness = whole_numbers("--staleness", options.staleness, least=0)
    config = load_config(options.config, options.overrides)
    if options.simulate:
        from srft_ray.commands.simulation.command import Times, simulate

        times = Times(options.generation_seconds, options.learner_seconds, options.compress)
        pools = whole_numbers("--stream", options.stream, least=1) if options.stream else []
        print(f"\n{simulate(config, engines, learners, staleness, options.steps, times, pools)}")
        return 0
    from srft_ray.commands.scale import scale as run

    print(f"\n{run(config, engines, learners, staleness, options.steps, options.devices)}")
    return 0
