"""`fit`: one run from a config to a trained model."""

import json
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from algorithms import Algorithm
from srft_ray.config.schema import Config, bounds, to_yaml
from srft_ray.data.plan import needs_engines
from srft_ray.data.stream import StreamFactory, execution_options
from srft_ray.errors import RunFailed, last_line
from srft_ray.models import resolve_device, resolve_dtype
from srft_ray.observe import report
from srft_ray.observe.journal import record_event, truncate, write_whole
from srft_ray.observe.progress import Progress
from srft_ray.run.cluster import cluster_address, learner_resources, placed
from srft_ray.run.preflight import Resolved, claimed, resolve
from srft_ray.run.supervisor import RunSupervisor, stopping
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.health import HealthMonitor
from srft_ray.train.checkpoint import CheckpointStore
from srft_ray.train.entry import Job, train_loop

ELASTIC_TRY_S = 30.0


@dataclass(frozen=True)
class Result:
    """A run that ended well: its directory, how many steps it has done, and why it was asked to stop before the last ("" if it
    was not); its final figures (those of summary.json; empty if it was stopped) and the trained model."""

    run_dir: Path
    steps: int
    stopped: str
    summary: dict[str, Any]
    model: str


def fit(config: Config, algorithm: Algorithm | None = None) -> Result:
    """Trains; `algorithm` takes the place of the config's `algorithm` section. Call it from the main thread.

    SIGTERM ends it in order: the learners finish or drop their step and write a checkpoint, and the result says so; the same
    call goes on from there. Of a run that is finished nothing is repeated.

    Raises:
        UserError: bad config, model or data, before anything is written.
        RunFailed: the run could not finish; its directory is usable.
    """
    if not cluster_address(config):
        resolve_device(config)  # its error comes before data are prepared
    resolved = resolve(config, algorithm)
    store = CheckpointStore.of(config)
    if store.finished(config.trainer.steps) and store.newest_whole() == config.trainer.steps:
        return _finished(config, store, time.time())
    with placed(config, needs_engines(config, resolved.algorithm)) as (device, threads), claimed(config):
        return _run(resolved, store, device, threads)


def _run(resolved: Resolved, store: CheckpointStore, device: str, threads: int | None) -> Result:
    config, started, run_dir = resolved.config, time.time(), resolved.config.run_dir
    (run_dir / "summary.json").unlink(missing_ok=True)  # of a shorter run
    write_whole(run_dir / "config.yaml", to_yaml(config))
    coordinator = (
        ray.remote(Coordinator)
        .options(
            num_cpus=0,
            max_restarts=config.rollout.max_restarts,
            max_task_retries=-1,
            scheduling_strategy=_here(),
        )
        .remote(
            config.rollout.max_staleness,
            HealthMonitor(config.rollout.stall_timeout_s, partial(record_event, run_dir)),
        )
    )
    truncate(run_dir, store.latest())
    with Progress(config, resume_from=store.latest()), stopping(coordinator):
        stopped = _attempts(resolved, store, coordinator, device, threads)
    if store.finished(config.trainer.steps):
        return _finished(config, store, started)
    done = store.latest()
    return Result(run_dir, done, stopped, {}, store.address(done, "hf"))


def _finished(config: Config, store: CheckpointStore, started: float) -> Result:
    """With its summary, which is written if the run ended before it was."""
    steps, summary = config.trainer.steps, config.run_dir / "summary.json"
    model = store.address(steps, "hf")
    figures = (
        json.loads(summary.read_text())
        if summary.exists()
        else report.write(config.run_dir, steps, model, time.time() - started)
    )
    return Result(config.run_dir, steps, "", figures, model)


def _attempts(
    resolved: Resolved, store: CheckpointStore, coordinator: Any, device: str, threads: int | None
) -> str:
    """Trains until the last step, or until the run is asked to stop; returns who asked. Learners that left because a machine
    is taken away start again on the others."""
    idle = 0
    while True:
        before = store.latest()
        _train(resolved, store, coordinator, device, threads)
        stopped, aborted = ray.get(coordinator.ended.remote())
        if aborted:
            raise RunFailed(aborted)
        if stopped or store.finished(resolved.config.trainer.steps):
            return stopped
        idle = 0 if store.latest() > before else idle + 1
        if idle > resolved.config.trainer.max_failures:
            raise RunFailed(f"The learners left {idle} times without a step (after {before} saved steps).")


def _train(
    resolved: Resolved, store: CheckpointStore, coordinator: Any, device: str, threads: int | None
) -> None:
    trainer, started, run_dir = (
        make_trainer(resolved, store, coordinator, device, threads),
        time.time(),
        resolved.config.run_dir,
    )
    supervisor = RunSupervisor(coordinator, resolved.config)
    try:
        with supervisor:
            trainer.fit()
    except SystemExit:  # Ray Train's own answer to Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        if supervisor.stopped:
            return
        if supervisor.found:
            raise RunFailed(f"{supervisor.found} (after {store.latest()} saved steps)") from None
        with suppress(OSError):  # on a full disk
            (run_dir / "failure.txt").write_text(f"{time.time() - started:.0f} s after the start:\n{error}\n")
        raise RunFailed(
            f"{cause(error)} (after {store.latest()} saved steps; details in {run_dir / 'failure.txt'})"
        ) from error


def _here() -> Any:
    """On the driver's node, whose end is the run's end."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def make_trainer(
    resolved: Resolved, store: CheckpointStore, coordinator: Any, device: str, threads: int | None
) -> Any:
    """The Ray Train trainer with the stream as its dataset; the coordinator outlives every restart of either."""
    from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from srft_ray.run.elasticity import CheckpointBeforeResize

    config, learner, trainer = resolved.config, resolved.config.learner, resolved.config.trainer
    dtype = resolve_dtype(config, device)
    low, high = bounds(learner.num_workers, "learner.num_workers")
    # elastic learners are counted anew after a try: the count may be of before a node died
    placing_s = learner.start_timeout_s if low == high else min(ELASTIC_TRY_S, learner.start_timeout_s)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(placing_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(learner.timeout_s)
    stream = StreamFactory(
        config,
        store,
        resolved.algorithm,
        resolved.plan,
        resolved.train,
        resolved.evaluation,
        coordinator,
        device,
        dtype,
    )
    job = Job(config, store, resolved.algorithm, resolved.plan, coordinator, dtype, threads)
    return TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="nccl" if device == "cuda" else "gloo", timeout_s=int(learner.timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=device == "cuda",
            resources_per_worker=learner_resources(config, device),
            elastic_resize_monitor_interval_s=learner.resize_interval_s,
        ),
        datasets={"train": stream},
        dataset_config=DataConfig(execution_options=execution_options(), enable_shard_locality=False),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(config.run_dir / ".ray_train"),
            callbacks=[CheckpointBeforeResize(coordinator, trainer.resize_timeout_s, config.run_dir)],
            failure_config=FailureConfig(max_failures=trainer.max_failures),
        ),
    )


def cause(error: BaseException) -> str:
    """The innermost error of a chain, or the last line of a remote traceback, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return last_line(error)
