"""A run of more blocks than one stream takes: several streams give what one would have given."""

import pytest
from safetensors.torch import load_file

from srft_ray import fit, make_config
from tests.conftest import base_config
from tests.ray.conftest import Run, what

pytestmark = pytest.mark.usefixtures("local_ray")


def trained(folder, tiny_model):
    folder.mkdir()
    keys = {"steps": 4, "evaluate_every": 2}
    evaluation = {"data": {"heldout": {"path": str(folder / "data.jsonl")}}, "samples": 2}
    config = make_config(base_config(folder, tiny_model, trainer=keys, evaluation=evaluation))
    run = Run(fit(config).run_dir)
    return run, load_file(run.dir / "checkpoints/step-4/hf/model.safetensors")


@pytest.mark.full
def test_a_run_of_several_streams_is_bitwise_that_of_one(tmp_path, tiny_model, monkeypatch):
    one, weights = trained(tmp_path / "one", tiny_model)
    monkeypatch.setattr("srft_ray.data.block_size.STREAM_BLOCKS", (2, 2))
    several, weights_of_several = trained(tmp_path / "several", tiny_model)
    several.check_exactly_once(steps=4, groups_per_step=4)
    assert [what(record) for record in several.metrics] == [what(record) for record in one.metrics]
    assert [what(record) for record in several.evaluations] == [what(record) for record in one.evaluations]
    assert len(several.evaluations) == 3
    assert all((weights[name] == weights_of_several[name]).all() for name in weights)
