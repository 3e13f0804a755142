"""DeepSpeed without what it would compile at the start of a learner, and nothing here uses; and its end."""

import importlib
import inspect
import logging
import os
from typing import Any

import deepspeed
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

__all__ = ["deepspeed", "release"]

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

# Else compiled at the first start; a process that is killed meanwhile leaves a lock that others wait for.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _import_muon() -> None:
    """DeepSpeed imports this optimizer whenever it looks at another one. Its functions are marked to be
    compiled, and for the mark alone a second would be spent on importing PyTorch's compiler."""
    switch = "TORCHDYNAMO_DISABLE"
    given = os.environ.get(switch)
    os.environ[switch] = "1"
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    if given is None:
        del os.environ[switch]
    else:
        os.environ[switch] = given


_import_muon()


def release(engine: Any) -> None:
    """Ends an engine, so that its memory is given back when nobody refers to it any more.

    PyTorch keeps the hooks of its parameters otherwise. ZeRO 3 also leaves modules on a list and in the cache
    of a method, for the length of the process.
    """
    engine.destroy()
    own = set(engine.module.modules())
    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module not in own]
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(cached).nonlocals["func"].cache_clear()
