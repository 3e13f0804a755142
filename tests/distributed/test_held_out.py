"""The held-out loss: exact whatever the ranks and the ZeRO stage, and without an effect on training."""

import pytest
import torch

from algorithms import SFT, Group
from tests.distributed.harness import Case, forward, load, make_groups, spawn


def train(rank, world, model_path, case, scores):
    """The figures of this rank's share and of groups without demonstrations, if it `scores`; then the weights
    after a step."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.held_out import held_out_figures
    from srft_ray.train.learner import Learner

    model, _ = load(model_path)
    engine = DeepSpeedEngine(model, case.learner(), torch.float32)
    learner = Learner(engine, case.learner(), parity_threshold=1e9)
    stage = case.stage(0)
    groups = make_groups(stage, 0)[rank::world]
    empty = [Group(0, -1, "", [], "") for _ in groups]
    figures = [held_out_figures(learner, share, 0) for share in (groups, empty)] if scores else []
    learner.step(make_groups(stage, 1)[rank::world], 1, stage, 1.0)
    return figures, {name: value.detach().clone() for name, value in engine.weights()}


@pytest.mark.parametrize(("world", "zero_stage", "packing"), [(1, 0, True), (2, 3, False)])
def test_the_loss_is_the_mean_over_all_tokens_and_changes_nothing(tiny_model, world, zero_stage, packing):
    case = Case(SFT(), zero_stage, packing=packing)
    (figures, none), weights = spawn(world, train, str(tiny_model), case, True)
    model = load(str(tiny_model))[0].double()
    pairs = [(group, demo) for group in make_groups(case.stage(0), 0) for demo in group.demonstrations]
    with torch.no_grad():
        logprobs_BT, entropies_BT = forward(model, pairs, 1.0)
    mask_BT = torch.zeros_like(logprobs_BT)
    for row, (_, demo) in enumerate(pairs):
        mask_BT[row, : len(demo.ids)] = 1
    means = {
        "demo_loss": float(-(logprobs_BT * mask_BT).sum() / mask_BT.sum()),
        "demo_entropy": float((entropies_BT * mask_BT).sum() / mask_BT.sum()),
    }
    assert figures == pytest.approx(means, rel=1e-5)
    assert none == {}
    _, plain = spawn(world, train, str(tiny_model), case, False)
    assert plain.keys() == weights.keys() and all(torch.equal(plain[name], weights[name]) for name in plain)
