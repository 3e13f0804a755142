"""Makes a moment of a run certain: Python imports this file first in every process that has its folder on the
path.

SRFT_MOMENT is `module:function:number:action:folder`. The call with that number, counted over all processes,
leaves the number of its process in the file `reached` of the folder. Then it waits for its end (action
`wait`) or raises a MemoryError (action `raise`).
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class Moment(importlib.abc.MetaPathFinder):
    """Wraps one function of one module when that is imported."""

    def __init__(self, module: str, function: str, number: str, action: str, folder: str) -> None:
        self.module = module
        self.owner, _, self.function = function.rpartition(".")
        self.number = int(number)
        self.action = action
        self.folder = Path(folder)

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            owner = getattr(module, self.owner) if self.owner else module
            setattr(owner, self.function, self.wrapped(getattr(owner, self.function)))

        spec.loader.exec_module = exec_module
        return spec

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if self._count() == self.number:
                self._reached()
            return function(*arguments, **options)

        return call

    def _count(self) -> int:
        """The number of this call; a file for each call makes it one of all processes."""
        number = 1
        while True:
            try:
                (self.folder / f"call-{number}").touch(exist_ok=False)
                return number
            except FileExistsError:
                number += 1

    def _reached(self) -> None:
        part = self.folder / "part"
        part.write_text(str(os.getpid()))
        part.rename(self.folder / "reached")
        if self.action == "raise":
            raise MemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        time.sleep(600)


if os.environ.get("SRFT_MOMENT"):
    sys.meta_path.insert(0, Moment(*os.environ["SRFT_MOMENT"].split(":")))
