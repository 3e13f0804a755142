"""`fit`: one run from a config to a trained model."""
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from algorithms import Algorithm
from srft_ray import report
from srft_ray.checkpoint import checkpoint_folder, latest_step
from srft_ray.cluster import cluster_address, placed
from srft_ray.config import Config, bounds, to_yaml
from srft_ray.data.pipeline import StreamFactory, execution_options
from srft_ray.data.plan import needs_engines
from srft_ray.errors import RunFailed
from srft_ray.models import resolve_device, resolve_dtype
from srft_ray.preflight import Resolved, resolve
from srft_ray.progress import Progress
from srft_ray.rollout.gate import Gate
from srft_ray.train_loop import ABORTED, Job, train_loop


@dataclass(frozen=True)
class Result:
    """A finished run: its directory, its final figures (those of summary.json), and the trained model."""
    run_dir: Path
    summary: dict[str, Any]

    @property
    def model(self) -> Path:
        return checkpoint_folder(self.run_dir, latest_step(self.run_dir)) / "hf"


def fit(config: Config, algorithm: Algorithm | None = None) -> Result:
    """Trains; `algorithm` takes the place of the config's `algorithm` section. Call it from the main thread.

    Raises:
        UserError: bad config, model or data, before anything is written.
        RunFailed: the run could not finish; its directory is usable.
    """
    if not cluster_address(config):
        resolve_device(config)  # its error comes before data are prepared
    resolved = resolve(config, algorithm)
    with placed(config, needs_engines(config, resolved.algorithm)) as (device, threads):
        return _run(resolved, device, threads)


def _run(resolved: Resolved, device: str, threads: int | None) -> Result:
    config, started = resolved.config, time.time()
    run_dir = config.run_dir
    (run_dir / "groups").mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(to_yaml(config))
    (run_dir / ABORTED).unlink(missing_ok=True)
    progress = Progress(config, resume_from=latest_step(run_dir))
    with progress:
        _train(resolved, device, threads)
    if latest_step(run_dir) < config.trainer.steps:
        raise RunFailed(_abort_message(run_dir))
    summary = report.write(run_dir, time.time() - started)
    return Result(run_dir, summary)


def _train(resolved: Resolved, device: str, threads: int | None) -> None:
    trainer, started = make_trainer(resolved, device, threads), time.time()
    try:
        trainer.fit()
    except SystemExit:  # Ray Train's own answer to Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        (resolved.config.run_dir / "failure.txt").write_text(f"{time.time() - started:.0f} s after the start:\n{error}\n")
        raise RunFailed(f"{cause(error)} (after {latest_step(resolved.config.run_dir)} saved steps; details in "
                        f"{resolved.config.run_dir / 'failure.txt'})") from error


def make_trainer(resolved: Resolved, device: str, threads: int | None) -> Any:
    """The Ray Train trainer with the stream as its dataset; the gate outlives every restart of either."""
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    config = resolved.config
    dtype = resolve_dtype(config, device)
    gate = ray.remote(Gate).options(num_cpus=0).remote(config.rollout.max_staleness)
    low, high = bounds(config.learner.num_workers, "learner.num_workers")
    stream = StreamFactory(config, resolved.algorithm, resolved.plan, resolved.train, resolved.evaluation, gate, device, dtype)
    job = Job(config, resolved.algorithm, resolved.plan, gate, dtype, threads)
    return TorchTrainer(
        train_loop, train_loop_config={"job": job}, torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(num_workers=low if low == high else (low, high), use_gpu=device == "cuda",
                                     resources_per_worker={"CPU": config.learner.cpus_per_worker, **({"GPU": 1} if device == "cuda" else {})}),
        datasets={"train": stream}, dataset_config=DataConfig(execution_options=execution_options(), enable_shard_locality=False),
        run_config=RunConfig(name="checkpoints", storage_path=str(config.run_dir),
                             failure_config=FailureConfig(max_failures=config.trainer.max_failures),
                             checkpoint_config=CheckpointConfig(num_to_keep=config.trainer.keep_checkpoints)))


def cause(error: BaseException) -> str:
    """The innermost error of a chain, or the last line of a remote traceback, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _abort_message(run_dir: Path) -> str:
    aborted = run_dir / ABORTED
    return aborted.read_text() if aborted.exists() else f"The run stopped after {latest_step(run_dir)} steps."
