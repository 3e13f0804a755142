"""The engine around vLLM: what it adds to vLLM's own output, and what it leaves out."""

import dataclasses
from importlib import import_module

import pytest
import torch

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection
from srft_ray.models import set_threads
from srft_ray.rollout import vllm_engine
from srft_ray.rollout.engine_settings import cache_settings
from srft_ray.rollout.generation import Sampling
from srft_ray.run.engine_memory import BATCHED_TOKENS
from srft_ray.run.memory import GIB

GPU = 80 * GIB
THREADS = 3  # as many as PyTorch would not choose here by itself
PROMPTS = [list(f"What is {n}?".encode()) for n in range(24)]


@pytest.fixture(scope="module")
def engine(tiny_model):
    model = ModelSection(path=str(tiny_model), max_length=128)
    before = torch.get_num_threads()
    made = vllm_engine.Engine(model, RolloutSection(), 0, "cpu", "float32", THREADS)
    yield made
    made.close()
    set_threads(before)


def test_it_computes_with_the_threads_that_it_was_given_and_compiles_nothing(engine):
    """Both are settings of a thread; and vLLM replaces PyTorch's function for the first by nothing."""
    from torch._dynamo.utils import counters

    engine.generate(PROMPTS[:2], [0, 1], Sampling(1.0, 1.0, 4))
    threads = []
    engine._loop.run(lambda: threads.append(torch.get_num_threads()))
    assert threads == [THREADS] and not counters["frames"]


def test_the_text_is_the_one_that_vllm_decodes(engine, monkeypatch):
    """A random model of bytes writes invalid UTF-8, also at the end, where decoding all at once differs."""
    seeds = list(range(len(PROMPTS)))
    found = engine.generate(PROMPTS, seeds, Sampling(1.0, 1.0, 64))
    with_text = []
    make = vllm_engine.Engine._generation

    def keep_text(self, output, params):
        with_text.append(output.outputs[0].text)
        return make(self, output, params)

    ours = vllm_engine._sampling_params

    def decoding(*arguments):
        params = ours(*arguments)
        params.detokenize = True
        return params

    monkeypatch.setattr(vllm_engine, "_sampling_params", decoding)
    monkeypatch.setattr(vllm_engine.Engine, "_generation", keep_text)
    again = engine.generate(PROMPTS, seeds, Sampling(1.0, 1.0, 64))
    assert found == again
    assert sorted(generation.text for generation in found) == sorted(with_text)
    assert {generation.finish_reason for generation in found} == {"stop", "length"}
    at_once = [engine.text(generation.ids) for generation in found]
    assert at_once != [generation.text for generation in found]


@pytest.fixture
def of_vllm():
    """vLLM's modules, made outside an engine. It takes seconds to import, and an engine is in this file."""
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        yield lambda name: import_module(f"vllm.model_executor.layers.{name}")


def numbers(*shape):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))).bfloat16()


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
@torch.no_grad()
def test_norms_are_the_learners(kind, of_vllm):
    """In bfloat16 bitwise: the engine's native norm alone, and behind the sum of a residual stream.

    There the engine norms the sum in float32, the learner the sum that is rounded to bfloat16.
    """
    modeling = import_module(f"transformers.models.{kind.lower()}.modeling_{kind.lower()}")
    learners = getattr(modeling, f"{kind}RMSNorm")(96, eps=1e-6).bfloat16()
    learners.weight.copy_(numbers(96))
    engines = of_vllm("layernorm").RMSNorm(96, eps=1e-6, dtype=torch.bfloat16)
    engines.weight.copy_(learners.weight)
    hidden, added = numbers(512, 96), numbers(2, 256, 96).view(512, 96)
    assert torch.equal(engines.forward_native(hidden), learners(hidden))
    found, total = engines.forward_native(added.clone(), hidden.clone())
    assert torch.equal(total, hidden + added)
    unrounded = hidden.float() + added.float()
    scale = torch.rsqrt(unrounded.square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(found, learners.weight * (unrounded * scale).bfloat16())
    # A rounding of the sum, and each side's of the normed number and of its product; 2^-8 each.
    gaps = (found.float() - learners(total).float()).abs()
    assert (gaps <= 5 * 2**-8 * found.float().abs()).all() and gaps.any()


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_rotary_embeddings_are_the_learners(kind, of_vllm):
    """In bfloat16 bitwise, at all positions."""
    import transformers

    modeling = import_module(f"transformers.models.{kind.lower()}.modeling_{kind.lower()}")
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=96, num_attention_heads=3, rope_parameters=rope
    )
    positions = torch.arange(4096)
    queries, keys = numbers(4096, 3, 32), numbers(1, 4096, 1, 32)[0]
    angles = getattr(modeling, f"{kind}RotaryEmbedding")(config)(queries, positions[None])
    expected = modeling.apply_rotary_pos_emb(
        queries.transpose(0, 1)[None], keys.transpose(0, 1)[None], *angles
    )
    engines = of_vllm("rotary_embedding").get_rope(32, 4096, True, rope, torch.bfloat16)
    found = engines.forward_native(positions, queries.flatten(1), keys.flatten(1))
    for own, theirs in zip(found, expected, strict=True):
        assert torch.equal(own.view(4096, -1, 32), theirs[0].transpose(0, 1))


def test_vllm_starts_beside_a_learner_that_has_all_of_its_part():
    """With the code of vLLM that refuses, and a snapshot of a GPU where 0.6 is the learner's and CUDA has
    begun for the engine too: 0.4 is not free any more."""
    from vllm import EngineArgs
    from vllm.config import CacheConfig, SchedulerConfig
    from vllm.utils.mem_utils import MemorySnapshot
    from vllm.v1.worker.utils import request_memory

    settings = cache_settings(RolloutSection(gpu_memory_utilization=0.4), GPU, 8 * GIB)
    assert settings.keys() <= {field.name for field in dataclasses.fields(EngineArgs)}
    free = int(0.4 * GPU) - GIB // 2
    snapshot = MemorySnapshot(device="cpu", auto_measure=False, total_memory=GPU, free_memory=free)
    assert request_memory(snapshot, CacheConfig(**settings)) <= free
    with pytest.raises(ValueError, match="Free memory on device"):
        request_memory(snapshot, CacheConfig(**settings | {"gpu_memory_utilization": 0.4}))
    assert SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS == BATCHED_TOKENS
