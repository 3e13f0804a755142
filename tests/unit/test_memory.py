"""Memory of learners and engines, worked out by hand for two shapes, and the refusal of what does not fit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from algorithms import GRPO, PPO, SRFT
from srft_ray.commands.cli import main
from srft_ray.config.load import make_config
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.errors import UserError
from srft_ray.run import device_memory
from srft_ray.run.memory import GIB, LearnerMemory, LearnerSetting
from srft_ray.run.memory_check import check_memory, largest_micro_batch, learner_memory
from srft_ray.run.model_shape import ModelShape
from srft_ray.run.placement import Placement, recomputes_activations
from tests.conftest import base_config

CARD = 81_559 * 2**20  # an H100 of 80 GB, as nvidia-smi says
SMALL = ModelShape(494_032_768, 151_936, 896, 24, 4864, 14, 896, 128)  # Qwen2.5-0.5B
MIDDLE = ModelShape(1_543_714_304, 151_936, 1536, 28, 8960, 12, 1536, 256)  # Qwen2.5-1.5B
LARGE = ModelShape(7_615_616_512, 152_064, 3584, 28, 18_944, 28, 3584, 512)  # Qwen2.5-7B
TURNS = Placement("cuda", True, 0.6, 0.4)
SEPARATE = Placement("cuda", False, 1.0, 1.0)


def run(algorithm: Any = None, learners: int = 1, **sections: dict[str, Any]) -> Resolved:
    values: dict[str, Any] = {"model": {"path": "/none"}, "data": {"path": "/none.jsonl"}}
    values |= sections
    values["learner"] = {"num_workers": learners, **sections.get("learner", {})}
    return resolve(make_config(values), algorithm or SRFT())


def said(found: object) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if value}


def test_what_a_token_takes_by_hand():
    """A layer of 1.5B: norms 2 · 1536 · (4 + 2 · 2); attention 2 · 2 · (1536 + 256) and 4 · 12; MLP
    4 · 2 · 8960. The head reads a norm of 1536 · (4 + 3 · 2); 3 · 2 · 8960 flow backward."""
    assert MIDDLE.layer_activations(2) == 24_576 + 7_216 + 71_680 == 103_472
    assert MIDDLE.activations(2, recomputed=False) == 28 * 103_472 + 15_360 + 53_760
    assert MIDDLE.activations(2, recomputed=True) == 28 * 1536 * 2 + 103_472 + 15_360 + 53_760
    assert MIDDLE.cache(2, shards=1) == 2 * 2 * 28 * 256
    assert MIDDLE.cache(2, shards=4) == 2 * 2 * 28 * 128, "a head of keys is not divided"


def test_a_learner_of_one_and_a_half_billion_on_one_card_by_hand():
    """2, 4, 8 and 4 bytes of a parameter. The bucket has 5e8 float32 numbers. A chunk has 384 tokens."""
    found = learner_memory(run(), SEPARATE, MIDDLE)
    assert said(found) == {
        "weights": 3_087_428_608,
        "master": 6_174_857_216,
        "moments": 12_349_714_432,
        "gradients": 6_174_857_216,
        "buckets": 2_000_000_000,
        "activations": 16_384 * 2_966_336,
        "head": 4 * 151_936 * (2 * 1536 + 2 * 384),
        "context": GIB // 2,
    }
    assert found.peak == 27_786_857_472 + GIB // 2 + 2_000_000_000 + 48_600_449_024 + 2_333_736_960
    recomputed = learner_memory(run(), TURNS, MIDDLE)
    assert recomputed.activations == 16_384 * 258_608 and recomputed.peak == 36_894_498_816


def test_a_checkpoint_in_the_background_is_a_copy_by_hand():
    """12 bytes of each parameter of a share, and a share of the weights, at least one piece of 1 GiB."""
    saved = {"trainer": {"async_checkpoints": True}}
    assert learner_memory(run(learners=2), SEPARATE, MIDDLE).host == 0
    halves = learner_memory(run(learners=2, **saved), SEPARATE, MIDDLE)
    assert halves.host == 12 * MIDDLE.parameters // 2 + MIDDLE.parameters
    found = learner_memory(run(learners=4, **saved), SEPARATE, MIDDLE)
    assert found.host == 12 * MIDDLE.parameters // 4 + GIB
    assert (
        learner_memory(run(learners=4, **saved), SEPARATE, SMALL).host == 3 * SMALL.parameters + 988_065_536
    )
    with_critic = learner_memory(run(PPO(), learners=4, **saved), SEPARATE, MIDDLE)
    assert with_critic.host - found.host == 12 * MIDDLE.parameters // 4
    adapted = dataclasses.replace(MIDDLE, adapters=18_464_768)
    found = learner_memory(run(**saved), SEPARATE, adapted)
    assert found.host == 12 * 18_464_768 + 2 * MIDDLE.parameters


def test_a_critic_has_states_of_its_own():
    plain, ppo = (learner_memory(run(algorithm), SEPARATE, MIDDLE) for algorithm in (GRPO(), PPO()))
    assert ppo.critic == 18 * MIDDLE.parameters and ppo.peak - plain.peak == ppo.critic
    offload = run(PPO(), learner={"zero_stage": 1, "offload_optimizer": True})
    moved = learner_memory(offload, SEPARATE, MIDDLE)
    assert moved.critic == 6 * MIDDLE.parameters and moved.host == 2 * 18 * MIDDLE.parameters


def test_only_adapters_are_trained():
    """18,464,768 numbers of rank 16: 4 bytes of master weights, 8 of moments and 4 of gradients each."""
    adapted = dataclasses.replace(MIDDLE, adapters=18_464_768)
    found = learner_memory(run(), SEPARATE, adapted)
    assert found.weights == 2 * MIDDLE.parameters and found.head == 4 * 151_936 * 2 * 384
    assert found.master + found.moments + found.gradients == 16 * 18_464_768
    critic = learner_memory(run(PPO()), SEPARATE, adapted).critic
    assert critic == 18 * MIDDLE.parameters, "all of a critic is trained"


def test_eight_learners_of_seven_billion_under_zero_3_by_hand():
    """A share is 951,952,064 parameters; 1e9 are gathered; buckets are made twice to be exchanged."""
    found = learner_memory(run(learners=8, learner={"zero_stage": 3}), TURNS, LARGE)
    assert said(found) == {
        "weights": 2 * 951_952_064 + 2 * 10**9,
        "master": 4 * 951_952_064,
        "moments": 8 * 951_952_064,
        "gradients": 4 * 951_952_064,
        "buckets": 4_000_000_000,
        "activations": 16_384 * 575_600,
        "head": 4 * 152_064 * (2 * 3584 + 2 * 384),
        "step": 2_000_000_000 + 4 * 951_952_064,
        "context": GIB // 2,
    }
    assert found.peak == 37_929_758_080


@pytest.mark.parametrize(
    ("dtype", "stage", "offload", "states", "host"),
    [
        ("bfloat16", 0, False, 2 + 4 + 12 / 4, 0),  # runs as ZeRO 1
        ("bfloat16", 1, False, 2 + 4 + 12 / 4, 0),
        ("bfloat16", 2, False, 2 + 16 / 4, 0),
        ("bfloat16", 2, True, 2 + 4 / 4, 18 / 4),
        ("bfloat16", 3, True, 2 / 4 + 2, 20 / 4),
        ("float32", 0, False, 4 + 4 + 8, 0),
        ("float32", 1, False, 4 + 4 + 12 / 4, 0),
        ("float32", 2, False, 4 + 16 / 4, 0),
        ("float32", 3, False, 4 / 4 + 4 + 16 / 4, 0),
    ],
)
def test_bytes_of_a_parameter_by_number_format_and_stage(
    dtype: str, stage: int, offload: bool, states: float, host: float
):
    learner = {"zero_stage": stage, "offload_optimizer": offload}
    config = run(learners=4, model={"path": "/none", "dtype": dtype}, learner=learner)
    shape = ModelShape(4 * 10**8)
    found = learner_memory(config, SEPARATE, shape)
    assert (found.states - found.context) / shape.parameters == pytest.approx(states)
    assert found.host / shape.parameters == pytest.approx(host)


@pytest.mark.parametrize(("shape", "card"), [(SMALL, 24_564 * 2**20), (SMALL, CARD), (MIDDLE, CARD)])
def test_one_gpu_is_enough_by_default(shape: ModelShape, card: float):
    check_memory(run(), TURNS, shape, card)
    assert learner_memory(run(), TURNS, shape).peak + 0.4 * card < card


def test_eight_cards_hold_seven_billion_in_turns():
    check_memory(run(learners=8, learner={"zero_stage": 3}), TURNS, LARGE, CARD)


@pytest.mark.parametrize(
    ("config", "placement", "shape", "card", "wanted"),
    [
        (run(), SEPARATE, LARGE, CARD, "set learner.activation_checkpointing=true and learner.offload_opt"),
        (run(), SEPARATE, MIDDLE, 64e9, "set learner.micro_batch_tokens=8192"),
        (run(learners=8), SEPARATE, LARGE, CARD, "set learner.micro_batch_tokens=4096"),
        (run(learners=8), SEPARATE, LARGE, 32e9, "set learner.zero_stage=3 and learner.activation_ch"),
        (run(), TURNS, MIDDLE, 48e9, r"26.8 GiB that .* GPU: set rollout.gpu_memory_utilization=0.23"),
        (run(), TURNS, LARGE, CARD, "take GPUs with more memory, or more learners"),
        (run(GRPO()), SEPARATE, LARGE, 16e9, r"An engine has 0.85 of a GPU's 14.9 GiB for 14.2 GiB"),
        (run(), Placement("cpu"), LARGE, 24 * GIB, r"at least 170.2 GiB .* this machine has 24.0 GiB"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_key_to_change(
    config: Resolved, placement: Placement, shape: ModelShape, card: float, wanted: str
):
    with pytest.raises(UserError, match=wanted) as refused:
        check_memory(config, placement, shape, card)
    assert "\n" not in str(refused.value)


def test_the_advice_is_enough():
    with pytest.raises(UserError, match=r"micro_batch_tokens=8192"):
        check_memory(run(), SEPARATE, MIDDLE, 64e9)
    check_memory(run(learner={"micro_batch_tokens": 8192}), SEPARATE, MIDDLE, 64e9)


def test_what_is_not_known_refuses_nothing():
    check_memory(run(), SEPARATE, LARGE, None)
    check_memory(run(), TURNS, ModelShape(10**8), 40e9)
    assert learner_memory(run(), TURNS, ModelShape(10**8)).activations == 0


def test_a_micro_batch_is_no_larger_than_a_step():
    """16 groups of 8 rollouts and a demonstration, each of at most 100 tokens, on two learners."""
    config = run(learners=2, model={"path": "/none", "max_length": 100}, rollout={"max_new_tokens": 50})
    assert largest_micro_batch(config) == 72 * 100
    assert largest_micro_batch(run()) == 16_384


def test_activations_are_recomputed_by_default_only_beside_an_engine():
    learner = run().config.learner
    assert recomputes_activations(learner, TURNS)
    assert not recomputes_activations(learner, SEPARATE)
    assert not recomputes_activations(learner, Placement("cpu", colocated=True))
    learner.activation_checkpointing = False
    assert not recomputes_activations(learner, TURNS)


def test_what_an_algorithm_needs_more():
    """A reference model has weights; divergences and gradients of entropies two more matrices of a chunk."""
    plain = learner_memory(run(GRPO()), SEPARATE, MIDDLE)
    anchored = learner_memory(run(GRPO(kl_coefficient=0.1)), SEPARATE, MIDDLE)
    assert anchored.reference == plain.weights and not plain.reference
    setting = LearnerSetting(run().config.learner, 1, 2, 16_384, compared=True)
    assert LearnerMemory.of(MIDDLE, setting).head - plain.head == 4 * 151_936 * 2 * 384
    setting = LearnerSetting(run().config.learner, 1, 2, 16_384, second_moments=True)
    assert LearnerMemory.of(MIDDLE, setting).moments == 2 * plain.moments


def test_the_memory_of_gpus_is_that_which_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_memory.gpu_memory_here() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 24564\necho 81559\n")
    tool.chmod(0o755)
    assert device_memory.gpu_memory_here() == CARD
    tool.write_text("#!/bin/sh\necho failed; exit 9\n")
    assert device_memory.gpu_memory_here() is None


def test_plan_needs_no_weights_and_refuses_what_does_not_fit(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_model / "config.json").read_text())
    values = base_config(tmp_path, folder, run={"device": "cuda"}, cluster={"placement": "colocated"})
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(values))
    assert main(["plan", str(path), "hardware.gpu_memory_gib=8"]) == 0
    lines = capsys.readouterr().out
    assert "shape has no weights: lengths in tokens were not checked" in lines
    assert "a learner and an engine on one GPU: 5.6 of 8.00 GiB" in lines
    assert "within 0.4 of its memory: " in lines
    assert main(["plan", str(path), "hardware.gpu_memory_gib=3.5"]) == 2
    assert "raise rollout.gpu_memory_utilization" in capsys.readouterr().err


def test_every_term_is_in_the_peak():
    numbers = dict.fromkeys(LearnerMemory.__dataclass_fields__, 0)
    for name in numbers:
        grown = LearnerMemory(**{**numbers, name: 7})
        assert grown.peak == (0 if name == "host" else 7), name
