"""`fit`: one run from a config to a trained model."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from algorithms import Algorithm
from srft_ray.config.load import as_config, to_yaml
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.config.schema import Config
from srft_ray.data.tokenize import load_tokenizer, token_pieces
from srft_ray.models import resolve_dtype
from srft_ray.observe import report
from srft_ray.observe.callbacks import Callback, Logger, as_callbacks
from srft_ray.observe.follow import RunFollower
from srft_ray.observe.journal import EVALUATIONS, read_json_lines, record_event, truncate, write_whole
from srft_ray.observe.page import write_page_quietly
from srft_ray.observe.progress import Progress
from srft_ray.observe.start import StartClock
from srft_ray.observe.timeline import write_newest_trace
from srft_ray.run.cluster import automatic_choices, cluster_address, placed
from srft_ray.run.device_memory import device_memory
from srft_ray.run.directory import RECORD, archive, check_saved
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
from srft_ray.run.supervisor import stopping
from srft_ray.run.until_done import train_until_done
from srft_ray.sync.coordinator import CALLS_AT_A_TIME, Coordinator
from srft_ray.sync.health import HealthMonitor
from srft_ray.train.checkpoint import CheckpointStore
from srft_ray.train.retention import BestStep


@dataclass(frozen=True)
class Result:
    """A run that ended well.

    Attributes:
        steps: optimizer steps done.
        stopped: why it was asked to stop before its last step; empty if it was not.
        summary: its final figures, those of summary.json; empty if it was stopped.
        model: directory or address of the trained model.
    """

    run_dir: Path
    steps: int
    stopped: str
    summary: dict[str, Any]
    model: str


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
    clock = StartClock()
    listeners = as_callbacks(callbacks, loggers)
    resolved = resolve(as_config(config), algorithm, verifier)
    if not cluster_address(resolved.config.cluster):
        resolve_device(resolved.config.run.device)  # its error comes before data are prepared
    # The lock is taken before the directory is looked at: what is found there stays true.
    with claimed(resolved.run_dir):
        prepared = prepare_run(resolved)
        if is_finished(prepared):
            return _finished(resolved, prepared.store, time.time())
        clock.mark("data")
        with placed(resolved, resolved.needs_engines) as placement:
            memory = device_memory(placement.device, bool(cluster_address(resolved.config.cluster)))
            check_memory(resolved, placement, model_shape(resolved.config), memory)
            clock.mark("Ray")
            return _run(prepared, placement, listeners, clock)


def is_finished(prepared: Prepared) -> bool:
    """Whether nothing of the run is left to do: its last checkpoint is whole and evaluated."""
    config, store = prepared.resolved.config, prepared.store
    if config.run.resume == "from_scratch":
        return False
    last = store.latest()
    whole = store.finished(config.trainer) and store.newest_whole() == last
    return whole and _is_evaluated(prepared, last)


def _is_evaluated(prepared: Prepared, last: int) -> bool:
    """Whether evaluations after the last step are recorded: not if a longer run was begun and given up."""
    if not prepared.plan.evaluates(last):
        return True
    records = read_json_lines(prepared.store.run_dir / EVALUATIONS)
    found = {record["set"] for record in records if record["step"] == last}
    return found >= prepared.evaluation.keys()


def _run(
    prepared: Prepared, placement: Placement, listeners: Sequence[Callback], clock: StartClock
) -> Result:
    resolved, store = prepared.resolved, prepared.store
    run_dir, steps = resolved.run_dir, resolved.config.trainer.steps
    started = time.time()
    identity = _identify(prepared, placement.device)
    # Vanished storage is refused before records are removed. The checkpoint itself is read when the learners
    # start.
    start = store.latest()
    check_saved(store, run_dir, start)
    (run_dir / "groups").mkdir(exist_ok=True)
    (run_dir / "summary.json").unlink(missing_ok=True)  # of a shorter run
    write_whole(run_dir / RECORD, to_yaml(resolved.config))
    for choice in automatic_choices(resolved.config, placement):
        record_event(run_dir, "placement", choice)
    coordinator = start_coordinator(resolved)
    truncate(run_dir, start)
    clock.mark("coordinator")
    clock.write(run_dir, "driver", start)
    try:
        with (
            stopping(coordinator) as stop,
            Progress(run_dir, steps, start) as progress,
            RunFollower(run_dir, [progress, *listeners], start, stop) as follower,
        ):
            stopped = train_until_done(prepared, identity.id, coordinator, placement)
        result = _result(resolved, store, started, stopped)
    finally:
        write_newest_trace(run_dir)
        write_page_quietly(run_dir, lambda: token_pieces(load_tokenizer(resolved.config.model)))
    follower.raise_failure()
    return result


def _result(resolved: Resolved, store: CheckpointStore, started: float, stopped: str) -> Result:
    if store.finished(resolved.config.trainer):
        return _finished(resolved, store, started)
    done = store.latest()
    return Result(resolved.run_dir, done, stopped, {}, store.address(done, "hf"))


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


def start_coordinator(resolved: Resolved) -> Any:
    """The actor that owns the versions; it outlives every restart of learners and engines."""
    rollout = resolved.config.rollout
    monitor = HealthMonitor(rollout.stall_timeout_s, partial(record_event, resolved.run_dir))
    # On the driver's node, whose end is the run's end.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Coordinator).options(
        num_cpus=0,
        max_restarts=rollout.max_restarts,
        max_task_retries=-1,
        max_concurrency=CALLS_AT_A_TIME,
        scheduling_strategy=here,
        # Hundreds of calls a second would push all other tasks out of Ray's list.
        enable_task_events=False,
    )
    return actor.remote(rollout.max_staleness, monitor, CALLS_AT_A_TIME // 2)


def _finished(resolved: Resolved, store: CheckpointStore, started: float) -> Result:
    """The result of a complete run; its summary is written if the run ended before it was."""
    trainer, path = resolved.config.trainer, resolved.run_dir / "summary.json"
    steps = chosen = store.latest()
    if trainer.patience is not None:
        chosen = BestStep(resolved.run_dir, trainer).of(store.steps()) or steps
    model = store.address(chosen, "hf")
    figures = json.loads(path.read_text()) if path.exists() else {}
    # Written anew if the run is finished already, and now asked for by another rule of what is best.
    if figures.get("model_step", figures.get("steps")) != chosen:
        figures = report.write(resolved.run_dir, steps, chosen, model, time.time() - started)
    return Result(resolved.run_dir, steps, "", figures, model)
