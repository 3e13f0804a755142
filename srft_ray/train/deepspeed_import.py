"""DeepSpeed without what it would compile at the start of a learner, and nothing here uses."""

import importlib
import os

import deepspeed

__all__ = ["deepspeed"]

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
