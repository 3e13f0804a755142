"""Where metrics also go: TensorBoard always; wandb and MLflow if asked for. A logger is called with (step, values)."""
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from numbers import Real

from srft_ray.config import Config, nearest, require

Logger = Callable[[int, Mapping[str, float]], None]


def check_loggers(names: list[str]) -> None:
    """Raises UserError for an unknown logger or one that is not installed."""
    for name in names:
        require(name in OPTIONAL, f"run.loggers has {name!r}: {nearest(name, OPTIONAL)}")
        require(importlib.util.find_spec(name) is not None, f"run.loggers has {name!r}, which is not installed: pip install {name}.")


def make_loggers(config: Config) -> list[Logger]:
    return [_tensorboard(config), *(OPTIONAL[name](config) for name in config.run.loggers)]


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, Real) and key != "step"}


def _tensorboard(config: Config) -> Logger:
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(config.run_dir / "tensorboard"))

    def log(step: int, values: Mapping[str, float]) -> None:
        for key, value in _numbers(values).items():
            writer.add_scalar(key, value, step)
        writer.flush()
    return log


def _wandb(config: Config) -> Logger:
    import wandb
    run = wandb.init(project="srft-ray", name=config.run.name, dir=str(config.run_dir), config=dataclasses.asdict(config))
    return lambda step, values: run.log(_numbers(values), step=step) if values else run.finish()


def _mlflow(config: Config) -> Logger:
    import mlflow
    mlflow.set_experiment("srft-ray")
    mlflow.start_run(run_name=config.run.name)
    return lambda step, values: mlflow.log_metrics(_numbers(values), step=step) if values else mlflow.end_run()


OPTIONAL = {"wandb": _wandb, "mlflow": _mlflow}
