"""Ray-native SRFT: demonstrations and verified rollouts in one stage, exact on every engine.

The names below are imported when they are first used, so that light processes (verifiers) stay light.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Config", "Result", "RunFailed", "UserError", "evaluate", "fit", "load_config", "make_config"]

_HOMES = {
    "Config": "config.schema",
    "load_config": "config.load",
    "make_config": "config.load",
    "fit": "run.driver",
    "Result": "run.driver",
    "RunFailed": "errors",
    "UserError": "errors",
    "evaluate": "commands.evaluate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'srft_ray' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"srft_ray.{_HOMES[name]}"), name)
