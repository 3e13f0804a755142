"""Invariant 1 with adapters: their update equals that of a float64 full batch.

The model that is saved is the base model with them added.
"""

from dataclasses import replace

import pytest

from algorithms import GRPO, LUFFY, SRFT, T1, ReLIFTBuffered
from tests.distributed.test_exact_update import SETTINGS, cases, check

ALGORITHMS = [
    SRFT(),
    LUFFY(),
    GRPO(old="learner", correction="token_tis", kl_coefficient=0.5, kl_estimator="full"),
    T1(anchor_rate=0.3, kl_coefficient=0.5, kl_estimator="k2"),
    ReLIFTBuffered(buffer_size=1, sft_entropy=0.5),
]


def with_adapters(algorithm, settings):
    return [replace(case, lora=4) for case in cases(algorithm, settings)]


@pytest.mark.parametrize("world", [1, 2])
def test_the_update_of_adapters_equals_the_float64_full_batch(world, tiny_model, untied_model, capsys):
    chosen = []
    for index, algorithm in enumerate(ALGORITHMS):
        settings = [SETTINGS[(3 * index + world + turn) % len(SETTINGS)] for turn in (0, 4)]
        chosen += with_adapters(algorithm, settings)
    check(world, untied_model if world == 2 else tiny_model, chosen, capsys)


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 2, 4])
def test_adapters_with_every_setting(world, tiny_model, capsys):
    check(world, tiny_model, [case for each in ALGORITHMS for case in with_adapters(each, SETTINGS)], capsys)
