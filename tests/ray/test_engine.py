"""The engine around vLLM: what it adds to vLLM's own output, and what it leaves out."""

import pytest

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection
from srft_ray.rollout import vllm_engine
from srft_ray.rollout.generation import Sampling

PROMPTS = [list(f"What is {n}?".encode()) for n in range(24)]


@pytest.fixture(scope="module")
def engine(tiny_model):
    model = ModelSection(path=str(tiny_model), max_length=128)
    made = vllm_engine.Engine(model, RolloutSection(), 0, "cpu", "float32")
    yield made
    made.close()


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
