"""Memory of engines: worked out by hand, and as vLLM is told it where a learner has the same GPU."""

import dataclasses
from pathlib import Path

import pytest

from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.errors import UserError
from srft_ray.rollout.engine_settings import cache_settings
from srft_ray.run.engine_memory import EngineMemory
from srft_ray.run.memory import GIB
from srft_ray.run.memory_check import check_memory, engine_memory, model_shape
from srft_ray.run.model_shape import ModelShape
from srft_ray.run.preflight import prepare_run
from srft_ray.run.trainer import stream_source
from tests.conftest import base_config
from tests.unit.test_memory import CARD, LARGE, MIDDLE, SEPARATE, TURNS, run

STEP = 2048 * 59_904 + 18 * 256 * 151_936  # of the model of 1.5B
RUNTIME = 2 * GIB


def test_what_an_engine_holds_by_hand():
    """A layer holds 2 · (2 · 1536 + 3 · 8960) bytes of a token, sampling 2 + 4 · 4 of a sequence and token of
    the vocabulary. A token takes 28,672 bytes of the cache, and a sequence has 2,048."""
    assert MIDDLE.layer_forward(2) == 59_904
    cache = int(0.4 * CARD) - 3_087_428_608 - STEP - RUNTIME
    found = engine_memory(run(), TURNS, MIDDLE, CARD)
    assert vars(found) == {
        "weights": 3_087_428_608,
        "step": STEP,
        "runtime": RUNTIME,
        "cache": cache,
        "sequences": cache / (28_672 * 2048),
    }
    assert found.beside_cache == 3_087_428_608 + STEP + RUNTIME
    assert found.sequences == pytest.approx(479.4, abs=0.05)
    divided = EngineMemory.of(LARGE, 2, 4, 256, 2048, 0.85 * CARD)
    assert divided.weights == 3_807_808_256 and LARGE.cache(2, 4) == 4 * 28 * 128


def test_what_else_takes_the_place_of_the_cache():
    """Adapters; more tokens in a step; the largest tensor, if it is larger than what a step holds."""
    adapted = dataclasses.replace(MIDDLE, adapters=18_464_768)
    assert engine_memory(run(), TURNS, adapted, CARD).weights == 2 * (1_543_714_304 + 18_464_768)
    many = run(rollout={"engine": {"max_num_batched_tokens": 16_384}})
    assert engine_memory(many, TURNS, MIDDLE, CARD).step - STEP == (16_384 - 2048) * 59_904
    few = run(rollout={"max_num_seqs": 8, "engine": {"max_num_batched_tokens": 256}})
    assert engine_memory(few, TURNS, MIDDLE, CARD).step == 2 * 151_936 * 1536


def test_the_run_passes_the_cache_of_the_plan(tmp_path: Path, tiny_model: Path):
    resolved = resolve(make_config(base_config(tmp_path, tiny_model, run={"device": "cuda"})))
    prepared = prepare_run(resolved)
    source = stream_source(prepared, None, TURNS)
    passed = cache_settings(source._rollout(), CARD, source.beside_cache)
    planned = engine_memory(resolved, TURNS, model_shape(resolved.config), CARD)
    assert passed["kv_cache_memory_bytes"] == planned.cache > 0
    assert stream_source(prepared, None, SEPARATE).beside_cache is None, "vLLM measures"


def test_a_gpu_without_room_for_a_cache_is_refused():
    """0 would let vLLM measure."""
    rollout = dataclasses.replace(run().config.rollout, gpu_memory_utilization=0.4)
    with pytest.raises(
        UserError, match=r"An engine has 0.4 of a GPU with 10.0 GiB, and needs 4.0 GiB beside"
    ):
        cache_settings(rollout, 10 * GIB, 4 * GIB)


def test_the_size_of_the_cache_is_the_users_only_where_an_engine_has_a_gpu_for_itself():
    given = run(rollout={"engine": {"kv_cache_memory_bytes": 10**9}})
    check_memory(given, SEPARATE, MIDDLE, CARD)
    for device in (CARD, None):
        with pytest.raises(UserError, match=r"rollout\.engine\.kv_cache_memory_bytes cannot be set where"):
            check_memory(given, TURNS, ModelShape(10**8), device)
