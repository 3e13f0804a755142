"""No rank goes on without what another rank could not write."""

import pytest
import torch

from srft_ray.observe.loggers import LoggerSettings
from tests.distributed.harness import spawn


def record(rank, world, run_dir, other_dir):
    """What each rank is told: at a start that cannot be recorded, and at a step that cannot."""
    from srft_ray.train.recorder import Recorder

    told = []
    device = torch.device("cpu")
    try:
        Recorder(run_dir, LoggerSettings("run", run_dir), device)
    except RuntimeError as error:
        told.append(str(error))
    recorder = Recorder(other_dir, LoggerSettings("run", other_dir), device)
    recorder.step({"step": 2, "loss": 0.5})
    try:
        if rank == 0:  # it alone writes there
            (other_dir / "metrics.jsonl").unlink()
            (other_dir / "metrics.jsonl").mkdir()
        recorder.step({"step": 3, "loss": 0.5})
    except RuntimeError as error:
        told.append(str(error))
    everything = [None] * world
    torch.distributed.all_gather_object(everything, told)
    return everything


@pytest.mark.parametrize("world", [1, 2])
def test_every_rank_is_told_what_could_not_be_recorded(tmp_path, world):
    folders = [tmp_path / "run", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "tensorboard").write_text("a file where TensorBoard needs a folder")
    told = spawn(world, record, *folders)
    assert len(told) == world
    for start, step in told:
        assert start.startswith(f"The start cannot be recorded in {folders[0]} (") and "exists" in start
        assert step.startswith(f"Step 3 cannot be recorded in {folders[1]} (") and "directory" in step
        assert start.endswith("make room, and run the same command again.")
