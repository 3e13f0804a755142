"""Invariant 1: the update does not depend on micro-batches, ranks, ZeRO stage or offload, and equals a float64 full batch."""
import pytest

from algorithms import GRPO, SFT, SRFT
from tests.distributed.harness import Case, difference, reference, run

CASES = [
    *(Case(algorithm, zero_stage=stage, micro_batch_tokens=tokens)
      for algorithm in (SRFT(), SFT(), GRPO()) for stage, tokens in ((0, 10_000), (1, 30), (2, 64), (3, 40))),
    Case(SRFT(), zero_stage=2, micro_batch_tokens=30, offload=True),
    Case(SRFT(), zero_stage=2, micro_batch_tokens=64, steps=3, temperature=0.7),
    Case(SRFT(entropy_granularity="token"), zero_stage=3, micro_batch_tokens=64, steps=3),
    Case(SRFT(), zero_stage=3, micro_batch_tokens=200, logit_chunk_mb=0.01),
    Case(SRFT(), zero_stage=2, micro_batch_tokens=200, logit_chunk_mb=0.01, activation_checkpointing=True, temperature=0.7),
    Case(SRFT(), zero_stage=3, micro_batch_tokens=64, activation_checkpointing=True),
]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_update_equals_the_float64_full_batch(world, tiny_model, untied_model):
    for model in (tiny_model, untied_model)[:1 if world == 4 else 2]:
        results = run(model, world, CASES)
        worst = max(difference(state, reference(model, case)) for (state, _), case in zip(results, CASES, strict=True))
        print(f"{len(CASES)} cases on {world} ranks: largest relative difference {worst:.1e}")
        assert worst <= 1e-5
