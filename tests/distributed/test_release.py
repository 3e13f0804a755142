"""A process that trains one model after another keeps only the newest."""

import gc

import deepspeed
import pytest
import torch

from algorithms import REGISTRY, SRFT
from tests.distributed.harness import Case, _cases, spawn


def _engines_left(rank, world, model_path, cases):
    _cases(rank, world, model_path, cases, ())
    gc.unfreeze()  # what the start of the ranks has put aside is looked at too
    gc.collect()
    return sum(type(found) is deepspeed.DeepSpeedEngine for found in gc.get_objects())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_closed_engines_are_gone(tiny_model, dtype):
    cases = [Case(SRFT(), zero_stage=stage, dtype=dtype) for stage in range(4)]
    with_more = [cls() for cls in REGISTRY.values() if cls().uses_reference or cls().uses_critic]
    assert {one.uses_critic for one in with_more} == {False, True}
    cases += [Case(one, zero_stage=3, dtype=dtype) for one in with_more]
    assert spawn(1, _engines_left, str(tiny_model), cases) == 0
