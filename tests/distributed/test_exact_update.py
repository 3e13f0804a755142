"""Invariant 1: the update equals a float64 full batch, whatever micro-batches, ranks, ZeRO stage or offload.

A new algorithm is covered by being registered.
"""

from dataclasses import replace
from functools import cache

import pytest

from algorithms import (
    C3PO,
    DAPO,
    DGRO,
    DPO,
    GRPO,
    GSPO,
    IWSFT,
    LUFFY,
    PPO,
    REGISTRY,
    REINFORCEPP,
    SRFT,
    SRFTHPT,
    T1,
    UFT,
    Algorithm,
    CHORDMu,
    ClipCov,
    KLCov,
    ReLIFTBuffered,
    Schedule,
    TwoStage,
    WeightedSFT,
)
from tests.distributed.harness import Case, calibrated, difference, reference, run

TOLERANCE = 1e-5
SETTINGS = [
    {"zero_stage": 0, "micro_batch_tokens": 10_000},
    {"zero_stage": 0, "micro_batch_tokens": 30, "mini_batches": 2, "clip": True},
    {"zero_stage": 1, "micro_batch_tokens": 30, "clip": True},
    {"zero_stage": 1, "micro_batch_tokens": 64, "offload": True},
    {"zero_stage": 2, "micro_batch_tokens": 40, "temperature": 0.7, "clip": True},
    {"zero_stage": 2, "micro_batch_tokens": 64, "offload": True, "steps": 2, "clip": True},
    {"zero_stage": 3, "micro_batch_tokens": 40, "mini_batches": 2},
    {
        "zero_stage": 3,
        "micro_batch_tokens": 200,
        "logit_chunk_mb": 0.01,
        "activation_checkpointing": True,
        "clip": True,
    },
]
OPTIONS = [  # what no registered algorithm has by default
    SRFT(entropy_granularity="batch"),
    SRFT(entropy_granularity="token", pos_neg_norm="separate", self_rollout_surrogate="prob"),
    SRFT(
        self_rollout_surrogate="log_ratio",
        norm="sequence_mean_token_sum",
        sft_norm="sequence_mean_token_mean",
    ),
    SRFTHPT(norm_constant=20.0, entropy_granularity="batch"),
    IWSFT(level="token", low=0.2, high=1.8),
    GRPO(old="learner", correction="token_tis", kl_coefficient=0.5, kl_estimator="k1"),
    GRPO(
        old="learner", correction="sequence_tis", correction_high=5.0, kl_coefficient=0.5, kl_estimator="k2"
    ),
    GRPO(old="learner", correction="token_mis", kl_coefficient=0.5, kl_estimator="k3", mask_truncated=True),
    GRPO(
        old="learner",
        correction="geometric_mis",
        correction_low=0.1,
        correction_high=9.0,
        entropy_coefficient=0.1,
        dual_clip=3.0,
    ),
    DAPO(kl_coefficient=0.2, kl_estimator="k3_plus"),
    GRPO(kl_coefficient=0.2, kl_estimator="full"),
    C3PO(token_budget=40),
    ClipCov(share=0.05, lowest=0.0),
    KLCov(share=0.05),
    T1(anchor_every=1, kl_coefficient=0.5),
    T1(anchor_rate=0.3, kl_coefficient=0.5, kl_estimator="full"),
    DPO(with_demonstrations=False, beta=1.0),
    REINFORCEPP(group_baseline=True),
    DGRO(value="soft"),
    PPO(discount=0.9, gae_lambda=0.8, standardize=False, value_clip=None, entropy_coefficient=0.1),
    UFT(old="learner", correction="sequence_tis"),
    WeightedSFT(weighting="top_entropy", top_share=0.4),
    GSPO(old="behavior", clip_low=3.0, clip_high=3.0),
    LUFFY(clip=0.2, standardize=True),
    SRFT(negative_coefficient=0.5, min_logprob=-5.0, self_rollout_surrogate="ratio", ratio_clip=0.2),
    GRPO(
        old="learner",
        max_probability=0.02,
        norm="constant",
        norm_constant=50.0,
        entropy_coefficient=0.1,
        entropy_kind="advantage",
    ),
    CHORDMu(warmup_steps=2, decay_steps=3),
    ReLIFTBuffered(buffer_size=1, sft_entropy=0.5),
    ReLIFTBuffered(buffer_size=2),
    TwoStage(first_steps=1, first_schedule=Schedule(weight_decay=0.5)),
    TwoStage(first=IWSFT(), second=SRFT(entropy_granularity="batch"), first_steps=1),
]


def cases(algorithm: Algorithm, settings: list[dict]) -> list[Case]:
    lasting = isinstance(algorithm, TwoStage) or algorithm.reference_rate(1) or algorithm.buffer_size
    two = 2 if lasting or algorithm.uses_critic else 1
    return [Case(algorithm, **{"steps": two, **setting}) for setting in settings]


@cache
def expected(model, case):
    return reference(model, case)


@cache
def norm(model, case):
    return calibrated(model, case).norm


def check(world, model, chosen, capsys):
    """Runs the cases; a reference is computed once for all that differ only in how they are executed."""

    def essence(case):
        return replace(
            case,
            zero_stage=0,
            micro_batch_tokens=1,
            offload=False,
            zero="",
            logit_chunk_mb=64,
            activation_checkpointing=False,
        )

    chosen = [replace(case, norm=norm(model, replace(essence(case), clip=False))) for case in chosen]
    results = run(model, world, chosen)
    found = [
        (difference(state, expected(model, essence(case))), case)
        for (state, _), case in zip(results, chosen, strict=True)
    ]
    worst, culprit = max(found, key=lambda pair: pair[0])
    with capsys.disabled():
        print(
            f"\n{len(found)} updates on {world} ranks: largest relative difference {worst:.1e} "
            f"({culprit.algorithm.name})"
        )
    assert all(
        metrics["grad_norm"] > case.learner().max_grad_norm
        for (_, metrics), case in zip(results, chosen, strict=True)
        if case.clip and case.steps == case.mini_batches == 1
    ), "clipping was not active"
    assert worst <= TOLERANCE


@pytest.mark.parametrize("world", [1, 2, 4])
def test_update_equals_the_float64_full_batch(world, tiny_model, untied_model, capsys):
    """Each algorithm with one setting on one or on two ranks, every third on four too; each option once.

    The settings are taken in turn; the full tests have all of them for each.
    """
    chosen: list[Case] = []
    for index, cls in enumerate(REGISTRY.values()):
        if index % 3 == 0 if world == 4 else index % 2 + 1 == world:
            chosen += cases(cls(), [SETTINGS[(index // 2 + 3 * world) % len(SETTINGS)]])
    for index, algorithm in enumerate(OPTIONS):
        if index % 2 + 1 == world:
            chosen += cases(algorithm, [SETTINGS[(index // 2 + world) % len(SETTINGS)]])
    check(world, untied_model if world == 2 else tiny_model, chosen, capsys)


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_algorithm_with_every_setting(world, tiny_model, capsys):
    check(world, tiny_model, [case for cls in REGISTRY.values() for case in cases(cls(), SETTINGS)], capsys)


@pytest.mark.full
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_option_with_every_setting(world, untied_model, capsys):
    check(world, untied_model, [case for algorithm in OPTIONS for case in cases(algorithm, SETTINGS)], capsys)


def test_further_settings_of_deepspeed_do_not_change_the_update(tiny_model, capsys):
    """`learner.deepspeed`: each with each ZeRO stage that knows it."""
    chosen = [Case(SRFT(), zero_stage=stage, zero="small buckets", steps=2) for stage in (1, 2, 3)]
    three = ("parameters offloaded", "parameters kept", "secondary partition")
    chosen += [Case(SRFT(), zero_stage=3, zero=name, micro_batch_tokens=40, steps=2) for name in three]
    chosen.append(Case(SRFT(), zero_stage=3, zero="parameters offloaded", offload=True, steps=2))
    check(2, tiny_model, chosen, capsys)
