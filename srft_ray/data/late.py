"""What Ray Data's actors work with. Light to import: processes that only handle the stream import it too."""

from typing import Any

from ray import cloudpickle

from srft_ray.imports import large_imports


class LateProcess:
    """Turns positions into groups, by what is unpickled where it works.

    Ray Data unpickles the arguments of an actor in each process that handles the stream, too. Bytes are light
    there; what they hold imports torch and more.
    """

    def __init__(self, pickled: bytes) -> None:
        """`pickled`: a function that gives a callable, by cloudpickle."""
        with large_imports():
            make = cloudpickle.loads(pickled)
        self._process = make()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        return self._process(block)

    def __del__(self) -> None:
        """Ray Data's way to tell an actor that it ends in order."""
        close = getattr(self.__dict__.get("_process"), "close", None)
        if close:
            close()
