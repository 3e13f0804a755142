"""Rollouts are refused unless they come from weights that the learners published."""

import pytest
import torch

from algorithms import Completion, Group
from srft_ray.train.provenance import Provenance, ProvenanceError


def group(version, fingerprint, dataset="train", probe=()):
    rollout = Completion(0, "rollout", "text", [1], [0.0], policy_version=version)
    demonstration = Completion(1, "demo", "text", [1])
    return Group(
        step=5,
        group_id=9,
        prompt="",
        prompt_ids=[1],
        reference="",
        completions=[rollout, demonstration],
        dataset=dataset,
        engine="abcd1234",
        fingerprints={version: fingerprint},
        probes={version: probe},
    )


@pytest.fixture
def provenance():
    made = Provenance(1, 1e-3, torch.device("cpu"))
    made.fingerprints = {4: "four", 5: "five", 6: "six"}
    return made


def test_published_weights_within_the_bound_are_accepted(provenance):
    assert provenance.problem(5, group(5, "five")) == ""
    assert provenance.problem(5, group(4, "four")) == ""
    assert provenance.problem(5, Group(5, 9, "", [1], "", [Completion(0, "demo", "", [1])])) == ""


@pytest.mark.parametrize("version", [3, 6])
def test_versions_outside_the_bound_are_refused(provenance, version):
    provenance.fingerprints[3] = "three"
    problem = provenance.problem(5, group(version, {3: "three", 6: "six"}[version]))
    assert f"engine abcd1234 sampled group 9 of train by policy version {version}" in problem
    assert "only versions 4 to 5 are allowed (rollout.max_staleness=1)" in problem


def test_other_weights_are_refused_with_both_fingerprints(provenance):
    problem = provenance.problem(5, group(5, "four"))
    assert "engine abcd1234" in problem and "fingerprint four as policy version 5" in problem
    assert "published version 5 with fingerprint five" in problem
    del provenance.fingerprints[4]
    assert "published version 4 with fingerprint none" in provenance.problem(5, group(4, "four"))


def test_an_engine_that_computes_with_other_weights_than_it_loaded_is_refused(provenance):
    provenance.probes = {4: (-1.0, -2.0), 5: (-1.5, -2.5)}
    assert provenance.problem(5, group(4, "four", probe=(-1.0005, -2.0005))) == ""
    assert provenance.probe_difference(group(4, "four", probe=(-1.0005, -2.0005))) == pytest.approx(5e-4)
    stale = group(5, "five", probe=(-1.0, -2.0))
    problem = provenance.problem(5, stale)
    assert "engine abcd1234 sampled group 9 of train" in problem and "differ from the learner's by" in problem
    assert "5.00e-01 on average (threshold 1e-03)" in problem
    assert "differ" in provenance.problem(5, group(5, "five", probe=())), "an engine that scored no probe"
    assert "nan" in provenance.problem(5, group(5, "five", probe=(-1.5, float("nan"))))


def test_an_evaluation_is_of_one_version(provenance):
    assert provenance.problem(5, group(5, "five", dataset="held")) == ""
    assert "only versions 5 to 5" in provenance.problem(5, group(4, "four", dataset="held"))


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_the_ranks_agree_on_what_was_published():
    provenance = Provenance(1, 1e-3, torch.device("cpu"))
    for version, fingerprint in enumerate(("0" * 16, "f" * 16, "8" + "0" * 15, "7" + "f" * 15)):
        provenance.published(version, int(fingerprint, 16))
    assert provenance.fingerprints == {1: "f" * 16, 2: "8" + "0" * 15, 3: "7" + "f" * 15}
    provenance.check(3, [group(3, "7" + "f" * 15)])
    with pytest.raises(ProvenanceError, match=r"^Step 3: engine abcd1234 .* Nothing of this step is kept\.$"):
        provenance.check(3, [group(3, "7" + "f" * 15), group(3, "f" * 16)])
