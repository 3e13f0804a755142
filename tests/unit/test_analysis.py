"""The analyses of a run: worked values, and all tables from one small run with real models."""

import math

import pytest
import torch

from srft_ray.commands.analysis import records, scoring, token_shift
from srft_ray.commands.analysis.texts import Text, first_texts, sampled_texts
from srft_ray.commands.analysis.weights import kind_of, layer_of, weight_changes
from srft_ray.observe.journal import append_json
from tests.unit.test_page import write_run


def test_divergences_of_known_distributions():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).clamp(min=1e-30).log()
    q = torch.tensor([[0.25, 0.75], [0.0, 1.0]]).clamp(min=1e-30).log()
    kl = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert scoring.divergence(p, q)[0] == pytest.approx(kl)
    assert scoring.entropy(p).tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)
    assert scoring.jensen_shannon(p, q)[1] == pytest.approx(math.log(2)), "at most log 2"
    assert scoring.jensen_shannon(p, p).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    text = Text("right", 0, [0], [1, 0])
    assert scoring.rank(q, text).tolist() == [0, 1]
    assert scoring.chosen(q, text)[0] == pytest.approx(math.log(0.75))


def test_deciles_hold_a_tenth_each_and_ties_share_one():
    deciles = token_shift.decile(torch.arange(100.0).numpy())
    assert [int((deciles == n).sum()) for n in range(10)] == [10] * 10
    assert len(set(token_shift.decile(torch.zeros(7).numpy()))) == 1


def test_kinds_and_layers_of_tensors():
    name = "model.layers.12.self_attn.q_proj.weight"
    assert (kind_of(name), layer_of(name)) == ("q_proj.weight", "layer 12")
    assert (kind_of("lm_head.weight"), layer_of("lm_head.weight")) == ("lm_head.weight", "outside the layers")


def test_small_changes_vanish_in_bfloat16(tmp_path):
    from safetensors.torch import save_file

    before = torch.ones(10)
    after = before.clone()
    after[0] += 1e-4
    after[1] += 0.5
    for folder, tensor in (("a", before), ("b", after)):
        (tmp_path / folder).mkdir()
        save_file({"model.layers.0.x.weight": tensor}, tmp_path / folder / "m.safetensors")
    row = weight_changes(tmp_path / "a", tmp_path / "b")[0]
    assert (row["weights of"], row["weights"]) == ("all", 10)
    assert (row["unchanged"], row["unchanged in bfloat16"]) == (0.8, 0.9)
    assert row["relative change"] == pytest.approx(math.sqrt((0.25 + 1e-8) / 10), rel=1e-4)


def test_texts_are_of_every_kind_and_none_is_too_long(tmp_path):
    folder = write_run(tmp_path / "run", ["x"], steps=4, groups=3)
    found = sampled_texts(folder, per_kind=4, most_steps=2, longest=10)
    assert [(text.kind, text.step) for text in found] == [
        ("right", 0),
        ("right", 0),
        ("wrong", 0),
        ("wrong", 0),
        ("right", 3),
        ("right", 3),
        ("wrong", 3),
        ("wrong", 3),
    ]
    assert {text.step for text in first_texts(folder, 2, 10)} == {0}
    assert sampled_texts(folder, 4, 2, longest=2) == []


def test_cost_counts_what_was_done_before_each_evaluation(tmp_path):
    for step in range(2):
        append_json(tmp_path / "metrics.jsonl", {"step": step, "tokens": 10.0, "tokens/generated": 30.0})
    for step in (0, 1, 2):
        append_json(tmp_path / "evaluations.jsonl", {"step": step, "set": "held", "avg": 5.0})
    rows = records.accuracy_by_cost(tmp_path, 10**9)
    assert [row["tokens trained"] for row in rows] == [0, 10, 20]
    assert [row["TFLOPs"] for row in rows] == pytest.approx([0.0, 0.12, 0.24])


def test_texts_that_are_scored_together_get_what_they_get_alone(tiny_model):
    model = scoring.load(tiny_model)
    texts = [
        Text("demo", 0, [5, 6, 7], [8, 9]),
        Text("right", 0, [5], [6]),
        Text("wrong", 0, [9], [8, 7, 6, 5]),
    ]
    together = list(scoring.log_distributions(model, texts))
    for text, found in zip(texts, together, strict=True):
        (alone,) = scoring.log_distributions(model, [text])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
        assert len(found) == len(text.response_ids)
        assert found.exp().sum(dim=-1).tolist() == pytest.approx([1.0] * len(found), abs=1e-4)
