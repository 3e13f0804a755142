"""What the owner of a `VerifierPool` tells its supervisor process."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass

from srft_ray.errors import UserError
from srft_ray.verify.verifier import Verify, resolve


@dataclass(frozen=True)
class Settings:
    """Which verifier, and the bounds of one item."""

    name: str
    path: str | None
    function: bytes | None  # a callable, pickled by `pickle_function`
    timeout_s: float
    num_workers: int
    memory_mb: int  # per worker, on top of what the verifier's imports take


def pickle_function(function: Callable) -> bytes:
    """`function` as bytes that `load_verifier` understands. UserError where it cannot be sent or called."""
    import cloudpickle  # only here: most pools name their verifier

    resolve("", function=function)
    try:
        return cloudpickle.dumps(function)
    except Exception as error:
        raise UserError(
            f"verifier: the function cannot be sent to the verifier processes "
            f"({type(error).__name__}: {error}): let it use no lock, open file or connection of this process"
        ) from error


def load_verifier(settings: Settings) -> Verify:
    """The verifier that the settings describe. UserError where it cannot be had."""
    if settings.function is None:
        return resolve(settings.name, settings.path)
    try:
        function = pickle.loads(settings.function)
    except Exception as error:
        raise UserError(
            f"verifier: the function cannot be loaded in the verifier processes "
            f"({type(error).__name__}: {error}): a module that it needs must be importable there"
        ) from error
    return resolve("", function=function)
