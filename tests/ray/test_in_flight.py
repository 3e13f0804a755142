"""Weights that the real vLLM loads while sequences are in flight."""

import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from srft_ray import make_config
from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection
from srft_ray.models import load_model
from srft_ray.rollout.generation import Sampling
from srft_ray.rollout.vllm_engine import Engine
from tests.conftest import base_config

# More than a block of the KV cache has room for, so that what older weights computed would be used again.
PROMPTS = [[*range(5, 45), 50 + row] for row in range(12)]
SAMPLING = Sampling(1.0, 1.0, 64)
LOADS_AT = (6, 15)  # steps of the engine before which weights are loaded


@pytest.fixture(scope="module")
def policies(tiny_model, tmp_path_factory):
    """Three models; and the folders with the weights of all but the first."""
    models = [policy_of(tiny_model) for _ in range(3)]
    folders = []
    for number, model in enumerate(models[1:], 1):
        noise = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
        folders.append(tmp_path_factory.mktemp("published"))
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(tensors, folders[-1] / "model.safetensors")
    return models, folders


def policy_of(folder):
    return load_model(ModelSection(str(folder)), torch.float32, activation_checkpointing=False)


def made_engine(tiny_model, lora=None, **rollout):
    model = ModelSection(path=str(tiny_model), max_length=128)
    section = RolloutSection(in_flight=True, max_staleness=1, **rollout)
    return Engine(model, section, 0, "cpu", "float32", lora=lora)


@pytest.fixture(scope="module")
def engine(tiny_model):
    made = made_engine(tiny_model)
    yield made
    made.close()


def sampled(engine, folders, monkeypatch, action=Engine.load):
    """Generations of all prompts; after as many steps as LOADS_AT says, the folders are loaded."""
    coming = dict(zip(LOADS_AT, folders, strict=False))
    threads = []
    first, step = engine.steps, engine._adapted.step

    def loading_step():
        folder = coming.pop(engine.steps - first, None)
        if folder is not None:
            threads.append(threading.Thread(target=action, args=(engine, folder)))
            threads[-1].start()
            # It is done before the next step.
            while engine._loop._commands.empty():
                time.sleep(0.001)
        return step()

    monkeypatch.setattr(engine._adapted, "step", loading_step)
    found = engine.generate(PROMPTS, list(range(len(PROMPTS))), SAMPLING)
    monkeypatch.undo()
    for thread in threads:
        thread.join()
    return found


def difference(policy, prompt, generation, first, end):
    """Largest difference of the log-probs of these tokens from those of the policy."""
    with torch.no_grad():
        logp_TV = policy(torch.tensor([prompt + generation.ids])).logits[0, len(prompt) - 1 : -1]
    expected = logp_TV.log_softmax(-1).gather(-1, torch.tensor(generation.ids)[:, None])[:, 0]
    return float((expected - torch.tensor(generation.logprobs))[first:end].abs().max())


def spans(generation, before):
    """(number of the load since `before` loads, first token, end)."""
    ends = [first for _, first in generation.loads[1:]] + [len(generation.ids)]
    return [(load - before, first, end) for (load, first), end in zip(generation.loads, ends, strict=True)]


def check_parity(found, policies, before):
    """Every span has the log-probs of the policy that it names, and of no other."""
    for prompt, generation in zip(PROMPTS, found, strict=True):
        for load, first, end in spans(generation, before):
            for number, policy in enumerate(policies):
                gap = difference(policy, prompt, generation, first, end)
                assert gap <= 1e-4 if number == load else gap > 1e-2, (load, number, first, end)


def test_every_span_is_of_the_weights_that_it_names(engine, policies, monkeypatch):
    models, folders = policies
    found = sampled(engine, folders, monkeypatch)
    # The load is queued during a step, which still samples by the old weights.
    firsts = [tuple(first for _, first, _ in spans(generation, 0)) for generation in found]
    assert (0, LOADS_AT[0] + 1, LOADS_AT[1] + 1) in firsts
    assert engine.loads == 2
    check_parity(found, models, 0)
    again = engine.generate(PROMPTS, list(range(len(PROMPTS))), SAMPLING)
    assert {generation.loads for generation in again} == {((2, 0),)}
    check_parity(again, models, 0)


def test_a_load_of_the_same_weights_changes_no_token(engine, policies, monkeypatch):
    """No token is lost or sampled twice, and no sequence's generator is rewound or goes on too far."""
    folder = policies[1][0]
    engine.load(folder)
    before = engine.generate(PROMPTS, list(range(len(PROMPTS))), SAMPLING)
    found = sampled(engine, [folder, folder], monkeypatch)
    assert [generation.ids for generation in found] == [generation.ids for generation in before]
    assert sum(len(generation.loads) == 3 for generation in found) > len(PROMPTS) / 2
    for one, other in zip(found, before, strict=True):
        gaps = torch.tensor(one.logprobs) - torch.tensor(other.logprobs)
        assert gaps.abs().max() <= 1e-4
        assert one.text == other.text and one.finish_reason == other.finish_reason


def test_the_probe_comes_before_sequences_that_wait(tiny_model, policies, monkeypatch):
    """Otherwise a load would last until all sequences of the blocks in flight have had their turn."""
    engine = made_engine(tiny_model, max_num_seqs=2)
    scored = []

    def load(engine, folder):
        before = engine.steps
        engine.load(folder)
        scored.append((engine.score_probe(), engine.steps - before))

    found = sampled(engine, policies[1][:1], monkeypatch, load)
    [(probe, steps)] = scored
    # The steps in which the load was asked for and the probe was scored, and those until this thread went on.
    assert steps <= 5 < max(len(generation.ids) for generation in found) / 2
    assert probe == pytest.approx(engine.score_probe(), abs=1e-4)
    engine.close()


def test_an_adapter_is_loaded_in_flight_only_in_the_place_of_another(tmp_path, tiny_model, monkeypatch):
    """Sequences that were begun without one would go on without any."""
    from tests.distributed.low_rank import with_adapter
    from tests.unit.test_lora import whole

    lora = make_config(base_config(tmp_path, tiny_model, learner={"lora": {"rank": 4}})).learner.lora
    policies, folders = [], []
    for number in range(1, 4):
        policies.append(policy_of(tiny_model))
        adapter = with_adapter(policies[-1], lora)
        with torch.no_grad():
            for _, low_out in adapter.layers.values():
                low_out *= number
        folders.append(tmp_path / f"published-{number}")
        folders[-1].mkdir()
        tensors = {name: tensor.contiguous() for name, tensor in adapter.tensors(whole)}
        save_file(tensors, folders[-1] / "model.safetensors")
    engine = made_engine(tiny_model, lora)
    assert not engine.updates_in_flight
    engine.load(folders[0])
    assert engine.updates_in_flight
    found = sampled(engine, folders[1:], monkeypatch)
    assert any(len(generation.loads) == 3 for generation in found)
    check_parity(found, policies, 1)
    engine.close()
