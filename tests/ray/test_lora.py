"""Adapters from the learners to the real vLLM."""

import pytest
import torch
from safetensors.torch import save_file

from srft_ray import fit, make_config
from srft_ray.config.schema import ModelSection
from srft_ray.models import load_model
from tests.conftest import base_config
from tests.ray.conftest import Run

LORA = {"rank": 4, "alpha": 8.0}


def test_an_engine_samples_with_the_adapter_that_it_loaded_last(tmp_path, tiny_model):
    """Prompts of more than a block, so that a prefix cache that was not reset would be used."""
    from srft_ray.rollout.vllm_engine import Engine, Sampling
    from tests.distributed.low_rank import with_adapter
    from tests.unit.test_lora import whole

    config = make_config(base_config(tmp_path, tiny_model, learner={"lora": LORA}))
    lora = config.learner.lora
    engine = Engine(config.model, config.rollout, 0, "cpu", "float32", lora=lora)
    prompts = [[*range(5, 45), 50 + row] for row in range(8)]
    base = load_model(ModelSection(str(tiny_model)), torch.float32, activation_checkpointing=False)

    def difference(policy):
        """Largest difference of a sampled token's log-prob from the policy's."""
        found = engine.generate(prompts, list(range(8)), Sampling(1.0, 1.0, 24))
        worst = 0.0
        for prompt, generation in zip(prompts, found, strict=True):
            with torch.no_grad():
                logp_TV = policy(torch.tensor([prompt + generation.ids])).logits[0, len(prompt) - 1 : -1]
            expected = logp_TV.log_softmax(-1).gather(-1, torch.tensor(generation.ids)[:, None])[:, 0]
            worst = max(worst, float((expected - torch.tensor(generation.logprobs)).abs().max()))
        return worst

    assert difference(base) <= 1e-4
    for number in (1, 2):
        policy = load_model(ModelSection(str(tiny_model)), torch.float32, activation_checkpointing=False)
        adapter = with_adapter(policy, lora)
        with torch.no_grad():
            for _, low_out in adapter.layers.values():
                low_out *= number
        folder = tmp_path / f"published-{number}"
        folder.mkdir()
        named = [(name, tensor.contiguous()) for name, tensor in adapter.tensors(whole)]
        save_file(dict(named[::2]), folder / "model-00000.safetensors")
        save_file(dict(named[1::2]), folder / "model-00001.safetensors")
        engine.load(folder)
        assert difference(policy) <= 1e-4 and difference(base) > 0.1
    engine.close()


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("staleness", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_run_with_adapters(tmp_path, tiny_model, staleness):
    """Engines hold what learners published, and a run that goes on from a checkpoint repeats its steps."""
    values = base_config(
        tmp_path,
        tiny_model,
        learner={"lora": LORA, "lr": 1e-2, "zero_stage": 2},
        rollout={"max_staleness": staleness},
        trainer={"steps": 4, "checkpoint_every": 2},
    )
    run = Run(fit(make_config(values)).run_dir)
    run.check_exactly_once(4, make_config(values).trainer.groups_per_step)
    assert all(
        record["parity/abs_logprob_diff"] <= 1e-4 for record in run.metrics[: 4 if staleness == 0 else 1]
    )
    if staleness:
        assert all(record["parity/probe_abs_logprob_diff"] <= 1e-4 for record in run.metrics)
    assert {row["policy_version"] for row in run.rollouts} >= {0, 2}
    folder = run.dir / "checkpoints/step-4"
    assert (folder / "adapter/adapter_model.safetensors").is_file()
    trained = load_model(ModelSection(str(folder / "hf")), torch.float32, activation_checkpointing=False)
    base = load_model(ModelSection(str(tiny_model)), torch.float32, activation_checkpointing=False)
    changed = [
        name
        for name, tensor in trained.state_dict().items()
        if not torch.equal(tensor, base.state_dict()[name])
    ]
    assert changed and all("_proj.weight" in name for name in changed)
