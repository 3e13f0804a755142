"""The whole path on a local Ray cluster with the real vLLM and DeepSpeed."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from srft_ray import Callback, RunFailed, fit, make_config
from srft_ray.observe import metrics_reference
from srft_ray.observe.journal import read_json_lines
from tests.conftest import base_config
from tests.ray.conftest import Run

pytestmark = pytest.mark.usefixtures("local_ray")
CUSTOM = Path(__file__).resolve().parents[2] / "examples" / "custom_algorithm.py:Confident"
NUMBERED = {
    "loss",
    "entropy/rollout",
    "entropy/demo",
    "reward/mean",
    "groups/all_correct",
    "groups/all_wrong",
    "length/mean",
    "length/truncated",
    "parity/abs_logprob_diff",
    "staleness/mean",
    "grad_norm",
    "lr",
    "tokens",
    "operations",
    "time/step",
    "time/rollout_wait",
    "time/learner",
    "time/publish",
    "policy_version",
    "step",
}


class Told(Callback):
    """Keeps what it is told; raises at a step if it is to."""

    def __init__(self, raises_at=None):
        self.steps, self.evaluations, self.checkpoints = [], [], []
        self.raises_at = raises_at

    def on_step(self, record):
        self.steps.append(record)
        if record["step"] == self.raises_at:
            raise ValueError("not this step")

    def on_evaluation(self, record):
        self.evaluations.append(record)

    def on_checkpoint(self, step, path):
        self.checkpoints.append((step, path))


def check_documented(table, records):
    keys = {key for record in records for key in record}
    assert [key for key in keys if metrics_reference.find_entry(table, key) is None] == []


def hf_logprobs(folder: Path, row: dict, temperature: float) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
    logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1] / temperature
    return logits.log_softmax(-1)[
        torch.arange(len(row["response_ids"])), torch.tensor(row["response_ids"])
    ].detach()


def test_srft_on_policy_with_two_learners_zero_3_and_untied_embeddings(tmp_path, untied_model):
    config = make_config(
        base_config(
            tmp_path,
            untied_model,
            rollout={"temperature": 0.7, "num_engines": 2},
            learner={"num_workers": 2, "zero_stage": 3, "lr": 1e-3},
            trainer={"steps": 3, "checkpoint_every": 1, "evaluate_every": 2},
            evaluation={"samples": 2, "data": {"held": {}}},
        )
    )
    told = Told()
    result = fit(config, callbacks=[told])
    run = Run(result.run_dir)
    run.check_exactly_once(steps=3, groups_per_step=4)
    assert all(row["policy_version"] == row["step"] for row in run.rollouts)
    assert all(record["parity/abs_logprob_diff_max"] <= 1e-4 for record in run.metrics)
    assert all(
        record.keys() >= NUMBERED and all(math.isfinite(v) for v in record.values()) for record in run.metrics
    )
    assert [e["step"] for e in run.evaluations] == [0, 2, 3] and all(
        e["prompts"] == 8 for e in run.evaluations
    )
    check_documented(metrics_reference.METRICS, run.metrics)
    check_documented(metrics_reference.EVALUATIONS, run.evaluations)
    assert told.steps == run.metrics and told.evaluations == run.evaluations
    assert told.checkpoints == [(step, str(run.dir / f"checkpoints/step-{step}")) for step in (1, 2, 3)]
    assert {
        "config.yaml",
        "metrics.jsonl",
        "groups",
        "checkpoints",
        "tensorboard",
        "plots",
        "summary.json",
    } <= {p.name for p in run.dir.iterdir()}
    row = next(row for row in run.rollouts if row["step"] == 2)
    recorded = torch.tensor(row["logprobs"])
    torch.testing.assert_close(
        hf_logprobs(run.dir / "checkpoints/step-2/hf", row, 0.7), recorded, atol=1e-4, rtol=0
    )
    assert (hf_logprobs(run.dir / "checkpoints/step-1/hf", row, 0.7) - recorded).abs().max() > 1e-4
    assert len({row["seed"] for row in run.rollouts}) == len(run.rollouts)
    check_timeline(run)


def check_timeline(run):
    """The phases of each step add up to its time, and every engine's blocks lie one after another."""
    lines = read_json_lines(run.dir / "timeline/rank-0000.jsonl")
    for record in run.metrics:
        [phases] = [x["phases"] for x in lines if x["step"] == record["step"] and "update" in x["phases"]]
        total = sum(end - start for start, end in phases.values())
        assert total == pytest.approx(record["time/step"], rel=0.05, abs=0.02)
        assert phases["update"][1] - phases["update"][0] == pytest.approx(record["time/learner"], abs=1e-3)
    blocks = [block for x in lines for block in x["blocks"]]
    assert blocks and all(block[1:] == sorted(block[1:]) for block in blocks)
    trace = json.loads((run.dir / "timeline.json").read_text())
    found = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
    starts = {name for name in found if name.startswith("start: ")}
    assert {"start: data", "start: Ray", "start: imports", "start: model", "start: engine"} <= starts
    names = found - starts
    assert names == {
        *("rollout wait", "update", "publish", "record", "checkpoint"),
        *("evaluation", "held-out loss", "evaluation record"),
        *("wait", "generation", "judging"),
    }


def test_an_engine_loads_the_checkpoint_and_repeats_the_run(tmp_path, tiny_model):
    """vLLM on `hf/` gives the tokens and log-probs that the run recorded for that version."""
    from srft_ray.rollout.vllm_engine import Engine, Sampling

    config = make_config(
        base_config(
            tmp_path,
            tiny_model,
            learner={"lr": 1e-3, "zero_stage": 0},
            trainer={"steps": 2, "checkpoint_every": 1},
        )
    )
    run = Run(fit(config).run_dir)
    rows = [row for row in run.rollouts if row["step"] == 1]
    config.model.path = str(run.dir / "checkpoints/step-1/hf")
    engine = Engine(config.model, config.rollout, config.run.seed, "cpu", "float32")
    made = engine.generate(
        [r["prompt_ids"] for r in rows],
        [r["seed"] for r in rows],
        Sampling(1.0, 1.0, config.rollout.max_new_tokens),
    )
    engine.close()
    for row, generation in zip(rows, made, strict=True):
        assert generation.ids == row["response_ids"]
        torch.testing.assert_close(
            torch.tensor(generation.logprobs), torch.tensor(row["logprobs"]), atol=1e-4, rtol=0
        )


@pytest.mark.full
def test_a_callback_that_raises_stops_the_run_in_order_and_it_can_be_continued(tmp_path, tiny_model):
    values = base_config(tmp_path, tiny_model, trainer={"steps": 30})
    bad, good = Told(raises_at=1), Told()
    with pytest.raises(ValueError, match="not this step"):
        fit(make_config(values), callbacks=[bad, good])
    run = Run(make_config(values).run_dir)
    done = len(run.metrics)
    assert 2 <= done < 30 and good.steps == run.metrics and len(bad.steps) == 2
    assert good.checkpoints == [(done, str(run.dir / f"checkpoints/step-{done}"))]
    continued = Told()
    values["trainer"]["steps"] = done + 1
    fit(make_config(values), callbacks=[continued])
    assert [record["step"] for record in continued.steps] == [done]
    Run(run.dir).check_exactly_once(steps=done + 1, groups_per_step=4)


def test_staleness_is_used_and_bounded(tmp_path, tiny_model):
    config = make_config(
        base_config(
            tmp_path, tiny_model, rollout={"max_staleness": 2}, learner={"lr": 1e-4}, trainer={"steps": 8}
        )
    )
    run = Run(fit(config).run_dir)
    run.check_exactly_once(steps=8, groups_per_step=4)
    behind = {row["step"] - row["policy_version"] for row in run.rollouts}
    assert behind <= {0, 1, 2} and behind & {1, 2}
    for record in run.metrics:
        if record["parity/tokens"]:
            assert record["parity/abs_logprob_diff_max"] <= 1e-4
        else:
            assert record["parity/abs_logprob_diff"] is record["parity/abs_logprob_diff_max"] is None


def test_two_stages_with_their_own_rate_and_batch(tmp_path, tiny_model):
    """The second is a method from a file, as a user names it in YAML."""
    algorithm = {
        "name": "two_stage",
        "first_steps": 2,
        "first_schedule": {"groups_per_step": 8, "warmup": 0.5, "lr_schedule": "linear"},
        "second": {"path": str(CUSTOM), "ceiling": 0.7},
        "second_schedule": {"lr": 1e-5, "mini_batches": 2},
    }
    config = make_config({**base_config(tmp_path, tiny_model, trainer={"steps": 3}), "algorithm": algorithm})
    run = Run(fit(config).run_dir)
    rows = [[row for row in run.ledger if row["step"] == step] for step in range(3)]
    assert [{row["origin"] for row in of_step} for of_step in rows] == [
        {"demo"},
        {"demo"},
        {"demo", "rollout"},
    ]
    assert [sorted({row["group_id"] for row in of_step}) for of_step in rows] == [
        [*range(8)],
        [*range(8, 16)],
        [*range(16, 20)],
    ]
    assert [record["lr"] for record in run.metrics] == [1e-6, 1e-6, 1e-5]
    assert {"loss/policy", "loss/sft_demo"} <= run.metrics[2].keys()
    assert "ratio/mean" in run.metrics[2] and "ratio/mean" not in run.metrics[0]
    # No weights are published while nothing is sampled.
    assert [record["publications/unread"] for record in run.metrics] == [0.0] * 3


@pytest.mark.full
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize(("zero_stage", "learners"), [(0, 1), (3, 1), (0, 2), (3, 2)])
@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_parity(tmp_path, request, model, zero_stage, learners, temperature):
    config = make_config(
        base_config(
            tmp_path,
            request.getfixturevalue(model),
            rollout={"temperature": temperature},
            learner={"num_workers": learners, "zero_stage": zero_stage, "lr": 1e-3},
            trainer={"steps": 4},
        )
    )
    records = Run(fit(config).run_dir).metrics
    assert len(records) == 4 and all(record["parity/abs_logprob_diff_max"] <= 1e-4 for record in records)


BROKEN = '''
from pathlib import Path

from srft_ray.sync.transport import ObjectStoreTransport


class Deaf(ObjectStoreTransport):
    """One of the engines says that it loaded what it did not."""

    deaf = False

    def fetch(self, reload, offered):
        try:
            Path(__file__).with_name("deaf").touch(exist_ok=False)
            self.deaf = True
        except FileExistsError:
            pass
        return super().fetch((lambda folder: None) if self.deaf else reload, offered)


class Ignored(ObjectStoreTransport):
    """The engine is given the weights, and goes on with those that it has."""

    def fetch(self, reload, offered):
        from srft_ray.rollout.vllm_engine import Engine

        Engine.load = lambda engine, folder: None
        return super().fetch(reload, offered)


class Silent(ObjectStoreTransport):
    """Says that it published, and publishes the first weights again and again."""

    def publish(self, version, weights, sender):
        self.first = getattr(self, "first", None) or [(name, tensor.clone()) for name, tensor in weights]
        super().publish(version, iter(self.first), sender)


class Headless(ObjectStoreTransport):
    """Leaves out the head where it is the embedding, as named_parameters() does; the engine keeps its old one
    without a word.
    """

    def publish(self, version, weights, sender):
        super().publish(version, ((name, tensor) for name, tensor in weights if name != "lm_head.weight"),
        sender)
'''


@pytest.mark.full
@pytest.mark.parametrize(("transport", "version"), [("Silent", 2), ("Headless", 1)])
def test_weights_that_do_not_arrive_stop_the_run_before_the_next_update(
    tmp_path, tiny_model, transport, version
):
    (tmp_path / "broken.py").write_text(BROKEN)
    config = make_config(
        base_config(
            tmp_path,
            tiny_model,
            rollout={"transport": f"{tmp_path / 'broken.py'}:{transport}"},
            learner={"lr": 3e-2},
            trainer={"steps": 4},
        )
    )
    with pytest.raises(RunFailed, match=rf"Step {version}: .* version {version} did not reach them"):
        fit(config)
    assert [record["step"] for record in Run(config.run_dir).metrics] == list(range(version))


REFUSAL = (
    r"Step (\d+): engine (\w{8}) sampled .* by weights of fingerprint (\w{16}) as policy version (\d+), "
    r"but the learners published version \4 with fingerprint (\w{16})\."
)


@pytest.mark.parametrize("staleness", [pytest.param(0, marks=pytest.mark.full), 1])
def test_an_engine_that_computes_with_other_weights_than_it_was_given_is_refused(
    tmp_path, tiny_model, staleness
):
    """The fingerprints are right. Without staleness the rollouts themselves show it, else the probe."""
    (tmp_path / "broken.py").write_text(BROKEN)
    keys = {"transport": f"{tmp_path / 'broken.py'}:Ignored", "max_staleness": staleness}
    values = base_config(
        tmp_path, tiny_model, rollout=keys, learner={"lr": 3e-2}, trainer={"steps": 6, "evaluate_every": 0}
    )
    config = make_config(values)
    wanted = "log-probs of a fixed sequence differ" if staleness else "did not reach them"
    with pytest.raises(RunFailed, match=wanted):
        fit(config)
    run = Run(config.run_dir)
    assert {row["policy_version"] for row in run.rollouts} == {0}
    if staleness:
        assert run.metrics[0]["parity/probe_abs_logprob_diff"] < 1e-4
    else:
        assert "parity/probe_abs_logprob_diff" not in run.metrics[0]


@pytest.mark.parametrize(
    ("transport", "staleness", "dtype"),
    [
        pytest.param("Silent", 0, "float32", marks=pytest.mark.full),
        ("Silent", 1, "float32"),
        pytest.param("Silent", 2, "float32", marks=pytest.mark.full),
        pytest.param("Silent", 0, "bfloat16", marks=pytest.mark.full),
        pytest.param("Silent", 1, "bfloat16", marks=pytest.mark.full),
        pytest.param("Silent", 2, "bfloat16", marks=pytest.mark.full),
        pytest.param("Deaf", 0, "float32", marks=pytest.mark.full),
        pytest.param("Deaf", 1, "float32", marks=pytest.mark.full),
        pytest.param("Deaf", 1, "bfloat16", marks=pytest.mark.full),
    ],
)
def test_rollouts_of_other_weights_are_refused(tmp_path, tiny_model, transport, staleness, dtype):
    """At this learning rate the log-probs of neighbouring versions agree to far less than the parity
    threshold.
    """
    (tmp_path / "broken.py").write_text(BROKEN)
    config = make_config(
        base_config(
            tmp_path,
            tiny_model,
            rollout={
                "transport": f"{tmp_path / 'broken.py'}:{transport}",
                "max_staleness": staleness,
                "num_engines": 2,
                "dtype": "float32",
            },
            model={"dtype": dtype},
            learner={"lr": 1e-6},
            trainer={"steps": 6},
        )
    )
    with pytest.raises(RunFailed) as failure:
        fit(config)
    step, _, held, version, published = re.match(REFUSAL, str(failure.value)).groups()
    assert held != published
    run = Run(config.run_dir)
    # Nothing of the refused version was trained on: Silent's first wrong version is 2, Deaf's is 1.
    right = range(2) if transport == "Silent" else range(int(step))
    assert int(version) not in range(2) or transport == "Deaf"
    assert {row["policy_version"] for row in run.rollouts} <= set(right)
    assert [record["step"] for record in run.metrics] == list(range(int(step)))
