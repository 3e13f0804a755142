"""Golden numbers, worked out by hand and by an independent numpy script (SRFT, arXiv 2506.19767)."""

import ast
import dataclasses
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import algorithms
from algorithms import (
    GRPO,
    REGISTRY,
    SFT,
    SRFT,
    Batch,
    Completion,
    Group,
    PolicyOutput,
    Schedule,
    Term,
    TwoStage,
)
from algorithms.credit import group_advantages
from algorithms.losses import advantage_weighted, clipped, nll, ratio, shaped_prob
from algorithms.selections import demonstrations, rollouts
from algorithms.term import RESERVED_METRICS
from algorithms.weights import entropy_weight
from srft_ray.config.algorithm import check_terms, make_algorithm
from srft_ray.errors import UserError

ROOT = Path(algorithms.__file__).resolve().parents[1]

LOGITS = torch.tensor(
    [
        [[2.0, 0, -1, 0], [0, 1, 0, -1], [0.5, 0.5, 0, 0]],  # the demonstration
        [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]],  # a correct rollout
        [[0, 0, 1, 0], [0, 0, 0, 3], [1, 1, 0, 0]],  # a wrong rollout of two tokens
    ],
    dtype=torch.float64,
)
TOKENS = torch.tensor([[0, 1, 2], [0, 1, 3], [2, 3, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)


def policy_output(logits):
    logprobs = logits.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return PolicyOutput(logprobs.gather(-1, TOKENS[..., None])[..., 0], entropies.detach())


def golden_group():
    return Group(
        0,
        0,
        "",
        [],
        "",
        completions=[
            Completion(0, "rollout", "", [0, 1, 3], reward=1.0),
            Completion(1, "rollout", "", [2, 3], reward=0.0),
            Completion(2, "demo", "", [0, 1, 2]),
        ],
    )


def golden_batch(algorithm):
    positive, negative, demo = algorithm.advantages(golden_group())
    return Batch(
        MASK,
        torch.tensor([True, False, False]),
        torch.tensor([1.0, 1, 0], dtype=torch.float64),
        torch.tensor([demo, positive, negative], dtype=torch.float64),
        torch.zeros(3, 3, dtype=torch.float64),
    )


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )


def test_srft_advantages():
    close(SRFT().advantages(golden_group()), [0.57734927, -1.15469854, 0.57734927])
    close(SRFT(standardize=False).advantages(golden_group()), [1 / 3, -2 / 3, 1 / 3])


def test_srft_values():
    losses = SRFT().losses(golden_batch(SRFT()), policy_output(LOGITS))
    close(losses["sft_demo"], 0.14165871)
    close(losses["rl_demo"], -0.28492767)
    close(losses["rl_positive"] + losses["rl_negative"], -0.01399009)
    close(sum(losses.values()), -0.15725906)


def test_srft_gradients():
    srft, gradient = SRFT(), {}
    for name in ("sft_demo", "rl_demo", "rl_positive", "rl_negative"):
        logits = LOGITS.clone().requires_grad_()
        srft.losses(golden_batch(srft), policy_output(logits))[name].backward()
        gradient[name] = logits.grad
    close(
        gradient["sft_demo"][0],
        [
            [-0.01336795, 0.00564554, 0.00207688, 0.00564554],
            [0.01083000, -0.02564413, 0.01083000, 0.00398413],
            [0.01714350, 0.01714350, -0.04468507, 0.01039806],
        ],
    )
    close(
        gradient["rl_demo"][0],
        [
            [-0.03537032, 0.01493755, 0.00549522, 0.01493755],
            [0.02022235, -0.04788408, 0.02022235, 0.00743939],
            [0.01130660, 0.01130660, -0.02947100, 0.00685780],
        ],
    )
    close(
        gradient["rl_positive"][1],
        [
            [-0.03452336, 0.01150779, 0.01150779, 0.01150779],
            [0.00633405, -0.01900214, 0.00633405, 0.00633405],
            [0.01645119, 0.01645119, 0.01645119, -0.04935357],
        ],
    )
    close(
        gradient["rl_negative"][2],
        [
            [-0.03497554, -0.03497554, 0.10492662, -0.03497554],
            [-0.00866343, -0.00866343, -0.00866343, 0.02599030],
            [0, 0, 0, 0],
        ],
    )
    assert all(
        gradient[name][row].abs().max() == 0
        for name, row in (
            ("sft_demo", 1),
            ("rl_demo", 2),
            ("rl_positive", 0),
            ("rl_positive", 2),
            ("rl_negative", 1),
        )
    )


def test_entropy_weights_by_sequence():
    batch, policy = golden_batch(SRFT()), policy_output(LOGITS)
    close(entropy_weight(0.5, -1)(batch, policy)[0], [0.16524938])
    close(entropy_weight(0.1, 1)(batch, policy)[1], [0.32902379])


@pytest.mark.parametrize(
    ("entropy", "w_sft", "w_rl"),
    [
        (0.0, 0.5, 0.1),
        (0.2, 0.40936538, 0.12214028),
        (0.5, 0.30326533, 0.16487213),
        (1.0, 0.18393972, 0.27182818),
        (2.0, 0.06766764, 0.73890561),
        (0.80471896, 0.2236068, 0.2236068),
        (2.30258509, 0.05, 1.0),
    ],
)  # w_SFT = w_RL, and w_RL = 1
def test_entropy_weight_values(entropy, w_sft, w_rl):
    policy = PolicyOutput(
        torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), entropy, dtype=torch.float64)
    )
    batch = Batch(
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([True]),
        torch.ones(1),
        torch.ones(1),
        torch.zeros(1, 2),
    )
    for granularity in ("token", "sequence"):  # the same where the entropy is constant
        close(entropy_weight(0.5, -1, granularity)(batch, policy).flatten()[0], w_sft)
        close(entropy_weight(0.1, 1, granularity)(batch, policy).flatten()[0], w_rl)


def test_group_advantages():
    close(
        group_advantages([1, 0, 0, 1, 0, 0, 0, 0]),
        [1.62018167, -0.54006056, -0.54006056, 1.62018167] + [-0.54006056] * 4,
    )
    close(
        group_advantages([1, 0, 0, 1, 0, 0, 0, 0], standardize=False),
        [0.75, -0.25, -0.25, 0.75, -0.25, -0.25, -0.25, -0.25],
    )
    close(group_advantages([0] * 8 + [1]), [-0.33333233] * 8 + [2.66665867])
    assert group_advantages([1.0] * 9) == [0.0] * 9
    assert group_advantages([1.0]) == [0.0]


def token_batch(advantages, old=None):
    count = len(advantages)
    return Batch(
        torch.ones(count, 1, dtype=torch.bool),
        torch.zeros(count, dtype=torch.bool),
        torch.ones(count),
        torch.tensor(advantages, dtype=torch.float64),
        torch.log(torch.tensor(old or [1.0] * count, dtype=torch.float64))[:, None],
    )


def test_clipped_ratio():
    policy = PolicyOutput(
        torch.log(torch.tensor([[0.5], [0.1], [0.9]], dtype=torch.float64)), torch.zeros(3, 1)
    )
    batch = token_batch([1.0, 1, -1], [0.4, 0.2, 0.9])
    close(clipped(ratio("behavior"), 0.2, 0.28)(batch, policy).flatten(), [-1.25, -0.5, 1])


def test_shaped_probability():
    logprobs = torch.log(torch.tensor([[0.5], [0.1], [0.9]], dtype=torch.float64)).requires_grad_()
    loss = advantage_weighted(shaped_prob(0.1))(
        token_batch([1.0, 1, 1]), PolicyOutput(logprobs, torch.zeros(3, 1))
    )
    close(-loss.flatten(), [0.83333333, 0.5, 0.9])
    loss.sum().backward()
    close(-logprobs.grad.flatten(), [0.13888889, 0.25, 0.09])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("token_mean", 6.66666667), ("sequence_mean_token_sum", 20.0), ("sequence_mean_token_mean", 8.75)],
)
def test_norms(norm, expected):
    values = torch.tensor([[1.0, 2, 3, 4], [10, 20, math.nan, math.inf]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    batch = Batch(mask, torch.zeros(2, dtype=torch.bool), torch.ones(2), torch.ones(2), torch.zeros(2, 4))
    term = Term("x", rollouts, nll, norm=norm)
    total, _ = term.total(batch, PolicyOutput(-values, torch.zeros(2, 4)))
    close(total / term.count(batch), expected)


def test_token_mean_is_not_a_mean_of_means():
    sums, counts = [2.0, 100, 20, 8], [4, 100, 10, 2]
    values = torch.zeros(4, 100, dtype=torch.float64)
    for row, (total, count) in enumerate(zip(sums, counts, strict=True)):
        values[row, :count] = total / count
    mask = torch.arange(100)[None] < torch.tensor(counts)[:, None]
    batch = Batch(mask, torch.ones(4, dtype=torch.bool), torch.ones(4), torch.ones(4), torch.zeros(4, 100))
    close(SFT().losses(batch, PolicyOutput(-values, torch.zeros(4, 100)))["sft_demo"], 1.12068966)
    one_by_one = [
        Batch(mask[i : i + 1], *[torch.ones(1, dtype=torch.bool)] + [torch.ones(1)] * 2, torch.zeros(1, 100))
        for i in range(4)
    ]
    means = [
        SFT().losses(one, PolicyOutput(-values[i : i + 1], torch.zeros(1, 100)))["sft_demo"]
        for i, one in enumerate(one_by_one)
    ]
    close(sum(means) / 4, 1.875)  # what a mean of means would give


def test_masked_positions_carry_no_gradient_even_if_not_finite():
    logprobs = torch.tensor([[-1.0, math.nan], [-2.0, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    batch = Batch(mask, torch.tensor([True, False]), torch.ones(2), torch.ones(2), torch.zeros(2, 2))
    sum(
        SRFT()
        .losses(batch, PolicyOutput(logprobs, torch.tensor([[0.5, math.nan], [0.5, math.nan]])))
        .values()
    ).backward()
    assert torch.isfinite(logprobs.grad).all()
    assert (logprobs.grad[:, 1] == 0).all()


def test_weights_are_detached():
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)  # with its graph
    policy = PolicyOutput(logprobs.gather(-1, TOKENS[..., None])[..., 0], entropies)
    SRFT().losses(golden_batch(SRFT()), policy)["sft_demo"].backward()
    close(logits.grad[0, 0], [-0.01336795, 0.00564554, 0.00207688, 0.00564554])


def test_without_demonstrations_only_the_rollout_terms_remain():
    batch, policy = golden_batch(SRFT()), policy_output(LOGITS)
    alone = Batch(
        batch.mask_BT[1:],
        batch.is_demo_B[1:],
        batch.rewards_B[1:],
        batch.advantages_B[1:],
        batch.behavior_logprobs_BT[1:],
    )
    losses = SRFT().losses(alone, PolicyOutput(policy.logprobs_BT[1:], policy.entropies_BT[1:]))
    close(losses["sft_demo"] + losses["rl_demo"], 0.0)
    close(losses["rl_positive"] + losses["rl_negative"], -0.01399009)


def test_grpo_on_policy_gradient_is_the_advantage():
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -0.7]], dtype=torch.float64, requires_grad=True)
    batch = Batch(
        torch.tensor([[True, True], [True, False]]),
        torch.zeros(2, dtype=torch.bool),
        torch.ones(2),
        torch.tensor([1.0, -1.0], dtype=torch.float64),
        logprobs.detach().clone(),
    )
    GRPO().losses(batch, PolicyOutput(logprobs, torch.zeros(2, 2)))["policy"].backward()
    close(logprobs.grad, [[-0.25, -0.25], [0.5, 0.0]])


def test_two_stage_switches_with_its_own_rates():
    two = TwoStage(first_steps=3, first_schedule=Schedule(lr=5e-5), second_schedule=Schedule(lr=1e-6))
    assert [two.stage(step, 10).algorithm.name for step in (0, 2, 3, 9)] == ["sft", "sft", "grpo", "grpo"]
    assert (
        two.stage(2, 10).schedule.lr,
        two.stage(3, 10).schedule.lr,
        two.stage(3, 10).start,
        two.stage(3, 10).steps,
    ) == (5e-5, 1e-6, 3, 7)
    assert two.uses_rollouts and two.uses_demonstrations
    assert (
        TwoStage().stage(4, 10).algorithm.name == "sft" and TwoStage().stage(5, 10).algorithm.name == "grpo"
    )


def test_selections_split_the_tokens():
    batch = golden_batch(SRFT())
    assert (demonstrations(batch) ^ rollouts(batch)).equal(MASK)


def test_registry_holds_the_contract():
    assert {"srft", "sft", "grpo", "two_stage"} <= set(REGISTRY)
    assert not SFT().uses_rollouts and not GRPO().uses_demonstrations


def test_each_of_srfts_terms_can_be_replaced_alone():
    full = SRFT().losses(golden_batch(SRFT()), policy_output(LOGITS))
    assert list(full) == ["sft_demo", "rl_demo", "rl_positive", "rl_negative"]
    for name in full:
        whole = getattr(SRFT, name)

        class Reading(SRFT):
            pass

        def doubled(self, whole=whole):
            return dataclasses.replace(whole(self), weight=lambda *seen: 2 * whole(self).weight(*seen))

        setattr(Reading, name, doubled)
        found = Reading().losses(golden_batch(SRFT()), policy_output(LOGITS))
        assert {key: float(found[key] / full[key]) for key in full} == dict.fromkeys(full, 1.0) | {name: 2.0}


# names


class Twice(GRPO):
    """Two terms of one name, which would be divided by one count."""

    name = "twice"

    def terms(self):
        return (*super().terms(), Term("policy", demonstrations, nll))


def test_terms_of_one_name_are_refused(tmp_path):
    batch, policy = golden_batch(SRFT()), policy_output(LOGITS)
    for use in (
        lambda: Twice().needs,
        lambda: Twice().counts(batch),
        lambda: Twice().losses(batch, policy),
        lambda: Twice().losses(batch, policy, counts=GRPO().counts(batch)),
        lambda: TwoStage(second=Twice()).needs,
    ):
        with pytest.raises(ValueError, match="two terms are named 'policy'"):
            use()
    with pytest.raises(UserError, match="do not fit twice: two terms are named 'policy'"):
        check_terms(Twice())
    file = tmp_path / "own.py"
    file.write_text("from tests.unit.test_algorithms import Twice\n\n\nclass Own(Twice):\n    name = 'own'\n")
    for section in ({}, {"name": "two_stage"}):
        custom = {"path": f"{file}:Own"}
        with pytest.raises(UserError, match="do not fit own: two terms are named 'policy'"):
            make_algorithm({**section, "second": custom} if section else custom)


@pytest.mark.parametrize(
    "name", ["", "Policy", "policy/rollout", "2nd", "_policy", "my policy", "naïve", None]
)
def test_names_that_are_refused(name):
    with pytest.raises(ValueError, match="a term is named"):
        Term(name, rollouts, nll)
    with pytest.raises(ValueError, match="a metric of term 'x' is named"):
        Term("x", rollouts, nll, metrics={name: nll})


@pytest.mark.parametrize("name", sorted(RESERVED_METRICS))
def test_metrics_that_the_trainer_uses_itself_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}', which the trainer uses itself"):
        Term("x", rollouts, nll, metrics={name: nll})
    assert Term(name, rollouts, nll).metrics == {}


def written_keys(file):
    """The strings, and the beginnings of f-strings, that are keys of a dict or of an index in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        keys = node.keys if isinstance(node, ast.Dict) else [getattr(node, "slice", None)]
        for key in keys:
            text = key.values[0] if isinstance(key, ast.JoinedStr) else key
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.value


NOT_METRICS = ("checkpoint.py", "metrics_reference.py")


def test_every_prefix_that_the_trainer_records_is_reserved():
    files = [file for file in ROOT.glob("srft_ray/**/*.py") if file.name not in NOT_METRICS]
    keys = {key for file in files for key in written_keys(file)}
    prefixes = {key.split("/")[0] for key in keys if re.match(r"[a-z_]+/", key)}
    assert {"loss", "count", "weight", "metrics", "entropy", "reward", "time", "queue", "eval"} <= prefixes
    assert prefixes <= RESERVED_METRICS


@pytest.mark.parametrize("cls", REGISTRY.values())
def test_terms_are_the_same_at_every_call(cls):
    def described(term):
        parts = (term.select, term.loss, term.weight, *term.metrics.values())
        names = [part.__name__ for part in parts]
        return (term.name, names, term.norm, term.constant, term.needs, list(term.metrics))

    for step in (0, 1):
        algorithm = cls().stage(step, 2).algorithm
        assert [*map(described, algorithm.terms())] == [*map(described, algorithm.terms())]


def test_the_package_exports_what_a_composer_needs():
    types = "Algorithm Batch Completion Group PolicyOutput Schedule Stage"
    parts = "Term Norm PerToken Selection Granularity"
    modules = "losses selections weights credit schedules regularizers"
    classes = [cls.__name__ for cls in REGISTRY.values()]
    assert {*types.split(), *parts.split(), *modules.split(), *classes} <= set(algorithms.__all__)
    assert len(set(algorithms.__all__)) == len(algorithms.__all__)
    assert all(hasattr(algorithms, name) for name in algorithms.__all__)


def test_functions_are_named_after_the_call_that_made_them():
    made = clipped(ratio("behavior"), 0.2, clip_high=0.28)
    assert made.__name__ == "clipped(ratio(behavior), 0.2, clip_high=0.28)"
    assert clipped.__name__ == "clipped" and "PPO" in clipped.__doc__


def test_algorithms_import_only_torch_and_the_standard_library():
    for file in Path(algorithms.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert name.split(".")[0] in {"torch", "algorithms", *sys.stdlib_module_names}, (
                    f"{file.name} imports {name}"
                )
