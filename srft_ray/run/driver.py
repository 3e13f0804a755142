"""`fit`: one run from a config to a trained model."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from algorithms import Algorithm
from srft_ray.config.load import as_config, to_yaml
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.config.schema import Config
from srft_ray.models import resolve_dtype
from srft_ray.observe.callbacks import Callback, Logger, as_callbacks
from srft_ray.observe.journal import record_event, write_whole
from srft_ray.observe.rewind import rewind
from srft_ray.observe.start import StartClock
from srft_ray.run.cluster import (
    automatic_choices,
    cluster_address,
    forget_environment,
    placed,
    prepare_environment,
)
from srft_ray.run.device_memory import device_memory
from srft_ray.run.directory import RECORD, archive, check_saved, is_done
from srft_ray.run.following import SeriesFollower
from srft_ray.run.identity import (
    Identity,
    check_fingerprints,
    fingerprints,
    new_identity,
    read_identity,
    write_identity,
    write_owner,
)
from srft_ray.run.lock import claimed
from srft_ray.run.memory_check import check_memory, model_shape
from srft_ray.run.placement import Placement, resolve_device
from srft_ray.run.preflight import Prepared, prepare_run
from srft_ray.run.result import Result, result_of
from srft_ray.run.series import Run, events_of
from srft_ray.run.supervisor import stopping
from srft_ray.run.until_done import train_until_done
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.health import HealthMonitor

COORDINATOR_CALLS = 10_000  # at a time; Ray's own limit is 1,000


def fit(
    config: Config | str | Path,
    algorithm: Algorithm | None = None,
    *,
    verifier: Callable[..., Any] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Result:
    """Trains a model. Call it from the main thread.

    SIGTERM ends the run in order: the learners finish or drop their step and write a checkpoint, and the
    result says so; the same call goes on from there. Of a run that is finished nothing is repeated.

    Args:
        config: a config, which is not changed, or the path of a YAML file.
        algorithm: takes the place of the config's `algorithm` section.
        verifier: takes the place of `verifier.name` and `verifier.path`: a callable, a lambda too. It takes
            (response, reference, metadata) or (response, reference) and returns a number, bool or Verdict.
            It runs in the verifier processes, under the limits of the config's `verifier` section. The run's
            config.yaml records it as `verifier.name: python:<module>.<name>`, and the run is continued with a
            callable of that name only. Whether its code is still the same is not checked.
        callbacks: told of each step, evaluation and checkpoint while the run goes on; see `Callback`.
        loggers: called in the same way with (step, record of the step) and (step, figures of an evaluation).

    Raises:
        UserError: bad config, model or data, before anything is written.
        RunFailed: the run could not finish; its directory is usable.
        Exception: what a callback or a logger raised, after the run has stopped in order.
    """
    listeners = as_callbacks(callbacks, loggers)
    [result] = fit_series([resolve(as_config(config), algorithm, verifier)], listeners)
    return result


def fit_series(runs: Sequence[Resolved], listeners: Sequence[Callback] = ()) -> list[Result]:
    """Trains runs one after another, with engines and learners' processes that go from run to run.

    Args:
        runs: several only if `series_of` puts them into one series.
        listeners: told of every run.

    Raises:
        UserError, RunFailed, Exception: as `fit`. The same call goes on with the first unfinished run.
    """
    clock = StartClock()
    config = runs[0].config
    with ExitStack() as stack:
        prepare_environment(config.cluster, runs[0].needs_engines)
        stack.callback(forget_environment)
        if not cluster_address(config.cluster):
            resolve_device(config.run.device)  # its error comes before data are prepared
        # The locks are taken before the directories are looked at: what is found there stays true.
        for resolved in runs:
            stack.enter_context(claimed(resolved.run_dir))
        prepared = [prepare_run(resolved) for resolved in runs]
        results: dict[Path, Result] = {}
        waiting: list[Prepared] = []
        for one in prepared:
            if is_finished(one):
                results[one.resolved.run_dir] = result_of(one, time.time())
            else:
                waiting.append(one)
        clock.mark("data")
        if waiting:
            with placed(runs[0], runs[0].needs_engines) as placement:
                memory = device_memory(placement.device, bool(cluster_address(config.cluster)))
                for one in waiting:
                    check_memory(one.resolved, placement, model_shape(one.resolved.config), memory)
                clock.mark("Ray")
                trained = _train(waiting, placement, listeners, clock)
            results |= {result.run_dir: result for result in trained}
        return [results[resolved.run_dir] for resolved in runs]


def is_finished(prepared: Prepared) -> bool:
    """Whether nothing of the run is left to do: its last checkpoint is whole and evaluated."""
    if prepared.resolved.config.run.resume == "from_scratch":
        return False
    store, trainer = prepared.store, prepared.resolved.config.trainer
    done = is_done(store, trainer, prepared.plan, prepared.evaluation)
    return done and store.newest_whole() == store.latest()


def _train(
    waiting: Sequence[Prepared], placement: Placement, listeners: Sequence[Callback], clock: StartClock
) -> list[Result]:
    started = time.time()
    runs = [_begin(prepared, placement) for prepared in waiting]
    for choice in automatic_choices(waiting[0].resolved.config, placement):
        for run in runs:
            record_event(run.run_dir, "placement", choice, shown=run is runs[0])
    coordinator = start_coordinator(waiting[0].resolved, events_of(runs))
    for run in runs:
        rewind(run.run_dir, run.saved)
    clock.mark("coordinator")
    clock.write(runs[0].run_dir, "driver", runs[0].saved)
    with stopping(coordinator) as stop:
        following = SeriesFollower(runs, listeners, stop, started)
        try:
            with following:
                stopped = train_until_done(runs, coordinator, placement)
            results = [
                result_of(run.prepared, begun, stopped)
                for run, begun in zip(runs, following.started, strict=True)
            ]
        finally:
            following.write_pages()
    following.raise_failure()
    return results


def _begin(prepared: Prepared, placement: Placement) -> Run:
    """The run with its identity, and with its records in the run directory."""
    resolved, store = prepared.resolved, prepared.store
    run_dir = resolved.run_dir
    identity = _identify(prepared, placement.device)
    # Vanished storage is refused before records are removed. The checkpoint itself is read when the learners
    # start.
    check_saved(store, run_dir, store.latest())
    (run_dir / "groups").mkdir(exist_ok=True)
    (run_dir / "summary.json").unlink(missing_ok=True)  # of a shorter run
    write_whole(run_dir / RECORD, to_yaml(resolved.config))
    return Run(prepared, identity.id)


def _identify(prepared: Prepared, device: str) -> Identity:
    """The run's identity, which is recorded if the run is new.

    Raises:
        UserError: files that the updates depend on have changed since the run started.
    """
    resolved, store = prepared.resolved, prepared.store
    run_dir = resolved.run_dir
    if resolved.config.run.resume == "from_scratch":
        archive(run_dir, store)
    found = fingerprints(resolved, prepared.train.file, resolve_dtype(resolved.config.model, device))
    check_fingerprints(run_dir, found)
    identity = read_identity(run_dir) or new_identity(found)
    write_identity(run_dir, identity)
    write_owner(store, identity)
    return identity


def start_coordinator(resolved: Resolved, tell: Callable[[str, str], None]) -> Any:
    """The actor that owns the versions; it outlives every restart of learners and engines.

    `tell` is told (kind, message) of what happens to engines and to the actor itself.
    """
    rollout = resolved.config.rollout
    monitor = HealthMonitor(rollout.stall_timeout_s, tell)
    # On the driver's node, whose end is the run's end.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Coordinator).options(
        num_cpus=0,
        max_restarts=rollout.max_restarts,
        max_task_retries=-1,
        max_concurrency=COORDINATOR_CALLS,
        scheduling_strategy=here,
        # Hundreds of calls a second would push all other tasks out of Ray's list.
        enable_task_events=False,
    )
    return actor.remote(rollout.max_staleness, monitor, COORDINATOR_CALLS // 2)
