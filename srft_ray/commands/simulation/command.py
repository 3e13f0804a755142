"""`srft-ray scale --simulate`: simulates a config with several numbers of engines and learners."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from srft_ray.commands.pipeline_model import Setting
from srft_ray.commands.scale import variant_of
from srft_ray.commands.simulation.job import SimulatedJob
from srft_ray.commands.simulation.report import write
from srft_ray.commands.simulation.run import WARM_UP, run_simulated
from srft_ray.commands.simulation.stream import measure_stream
from srft_ray.commands.variants import folder_of
from srft_ray.config.resolve import Resolved
from srft_ray.config.schema import Config
from srft_ray.errors import require
from srft_ray.observe.journal import record_event
from srft_ray.run.cluster import start_ray
from srft_ray.run.driver import start_coordinator
from srft_ray.run.preflight import plan_stream


@dataclass(frozen=True)
class Times:
    """Stated seconds of a block of rollouts and of an update, and how many times shorter they are made."""

    generation_s: float
    learner_s: float
    compress: float = 1.0


def simulate(
    config: Config,
    engines: Sequence[int],
    learners: Sequence[int],
    staleness: Sequence[int] | None,
    steps: int,
    times: Times,
    pools: Sequence[int] = (),
) -> str:
    """Simulates every combination, one after another, and returns the findings as Markdown.

    They are also written, with plots and JSON, to `<run.dir>/<run.name>-scale/`. No model and no data are
    read. `pools` are sizes of Ray Data's pools whose scheduling is measured too.

    Raises:
        UserError: a setting cannot be simulated; it is raised before the first one starts.
    """
    require(
        steps >= WARM_UP + 2,
        f"--steps {steps} leaves nothing to measure: the first {WARM_UP} steps and the last do not count; "
        f"pass at least {WARM_UP + 2}.",
    )
    require(
        min(times.generation_s, times.learner_s) >= 0 and times.compress >= 1,
        "--generation-seconds and --learner-seconds must not be below 0, nor --compress below 1.",
    )
    levels = staleness or [config.rollout.max_staleness]
    settings = [Setting(e, n, s) for s, n, e in product(levels, learners, engines)]
    jobs = [(variant_of(config, setting, steps).resolved, setting) for setting in settings]
    planned = [(resolved, simulated_job(resolved, setting, times)) for resolved, setting in jobs]
    start_ray(config.cluster, cpus=1)
    runs = []
    for resolved, job in planned:
        resolved.run_dir.mkdir(parents=True, exist_ok=True)
        coordinator = start_coordinator(resolved, partial(record_event, resolved.run_dir))
        runs.append(run_simulated(job, coordinator))
    costs = [measure_stream(actors) for actors in pools]
    return write(runs, times.compress, costs, folder_of(config, "scale"))


def simulated_job(resolved: Resolved, setting: Setting, times: Times) -> SimulatedJob:
    """The job of a setting, with the plan that a run of it has."""
    return SimulatedJob(
        setting,
        plan_stream(resolved, {}),
        resolved.config.rollout,
        times.generation_s / times.compress,
        times.learner_s / times.compress,
    )
