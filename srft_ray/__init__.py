"""Ray-native SRFT: demonstrations and verified rollouts in one stage, exact on every engine.

The names below are imported when they are first used, so that light processes (verifiers) stay light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srft_ray.commands.compare import compare
    from srft_ray.commands.evaluate import evaluate
    from srft_ray.config.load import load_config, make_config
    from srft_ray.config.schema import Config
    from srft_ray.errors import RunFailed, UserError
    from srft_ray.observe.callbacks import Callback
    from srft_ray.run.driver import fit
    from srft_ray.run.result import Result
    from srft_ray.verify import Verdict

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Config",
    "Result",
    "RunFailed",
    "UserError",
    "Verdict",
    "compare",
    "evaluate",
    "fit",
    "load_config",
    "make_config",
]

_HOMES = {
    "Callback": "observe.callbacks",
    "Config": "config.schema",
    "Result": "run.result",
    "RunFailed": "errors",
    "UserError": "errors",
    "Verdict": "verify",
    "compare": "commands.compare",
    "evaluate": "commands.evaluate",
    "fit": "run.driver",
    "load_config": "config.load",
    "make_config": "config.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'srft_ray' has no attribute {name!r}")
    import importlib

    from srft_ray.imports import large_imports

    with large_imports():
        return getattr(importlib.import_module(f"srft_ray.{_HOMES[name]}"), name)
