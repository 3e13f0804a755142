"""What the config names and the installation must have: verifier, transport, loggers, DeepSpeed, vLLM."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from ray import cloudpickle

from srft_ray.config.resolve import PYTHON_VERIFIER
from srft_ray.config.schema import Config, VerifierSection
from srft_ray.errors import UserError, first_line, require
from srft_ray.observe.loggers import check_loggers
from srft_ray.rollout.engine_settings import check_arguments
from srft_ray.rollout.vllm_engine import engine_arguments
from srft_ray.sync.transports import transport_class
from srft_ray.train.deepspeed_config import check_deepspeed_settings
from srft_ray.verify import resolve as resolve_verifier
from srft_ray.verify.verifier import ENVIRONMENT


def check_installation(config: Config, verifier: Callable[..., Any] | None = None) -> None:
    """Raises UserError unless the verifier, the transport and the loggers that the config names can be used
    here."""
    if verifier is None:
        check_named_verifier(config.verifier)
    else:
        _check_python_verifier(verifier)
    if config.rollout.environment:
        resolve_verifier(ENVIRONMENT, config.rollout.environment)
    transport_class(config.rollout.transport)
    check_loggers(config.run.loggers)
    check_deepspeed(version("deepspeed"))
    check_deepspeed_settings(config.learner.deepspeed)
    check_arguments(config.rollout.engine, engine_arguments)


def check_named_verifier(section: VerifierSection) -> None:
    """Raises UserError unless the section names a verifier that can be used here."""
    require(
        not section.name.startswith(PYTHON_VERIFIER),
        f"verifier.name is {section.name}, a verifier that was given from Python: call fit(config, "
        "verifier=…), or set verifier.name or verifier.path.",
    )
    resolve_verifier(section.name, section.path)


def _check_python_verifier(verifier: Callable[..., Any]) -> None:
    resolve_verifier("", function=verifier)
    try:
        cloudpickle.dumps(verifier)
    except Exception as error:
        raise UserError(
            f"The verifier cannot be sent to other processes ({first_line(error)}): let it use no lock, open "
            "file or connection of this process."
        ) from error


def check_deepspeed(installed: str) -> None:
    """Releases before 0.19 silently lose gradients (DeepSpeed #7967, #7981)."""
    release = tuple(int(part) for part in installed.split(".")[:2])
    require(
        release >= (0, 19),
        f"DeepSpeed {installed} loses gradients with ZeRO-1/2 and optimizer offload: install "
        "deepspeed>=0.19.",
    )
