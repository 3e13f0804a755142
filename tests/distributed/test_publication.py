"""Publication by several ranks of the real engine: each sends its part, and together they are the weights."""

import copy
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.training import LearnerSection
from srft_ray.sync import transport
from srft_ray.sync.fingerprint import fingerprint, folder_fingerprint
from srft_ray.sync.pieces import write_files
from srft_ray.sync.versions import LearnerStart, PublishedVersions
from tests.distributed.harness import spawn


def publish(rank: int, world: int, path: str, zero_stage: int) -> dict[str, object]:
    """What one rank finds: the bytes that each rank sent, and the fingerprints of all sides."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.publisher import Publisher

    transport.ray = SimpleNamespace(put=copy.deepcopy, get=lambda value: value)
    shares = []
    coordinator = SimpleNamespace(
        publish=SimpleNamespace(remote=lambda generation, share: shares.append(share)),
        has_share=SimpleNamespace(remote=lambda *about: True),
    )
    job = SimpleNamespace(
        model=SimpleNamespace(path=path, max_length=64),
        rollout=RolloutSection(max_staleness=1),
        uses_engines=True,
        coordinator=coordinator,
    )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    engine = DeepSpeedEngine(model, LearnerSection(zero_stage=zero_stage), torch.float32)
    publisher = Publisher(job, LearnerStart(3, 7, from_model=False), engine, parity_threshold=1e-3)
    publisher.publish(3)
    everywhere = [None] * world
    dist.all_gather_object(everywhere, shares)
    versions = PublishedVersions(0)
    for [share] in reversed(everywhere):
        versions.publish(7, share)
    with tempfile.TemporaryDirectory() as folder:
        write_files(versions.read().headers, versions.read().pieces, Path(folder))
        loaded = folder_fingerprint(Path(folder))
    fingerprints = {
        "weights": fingerprint(engine.weights()),
        "published": versions.offered.fingerprint,
        "loaded": loaded,
        "expected by the learners": publisher.provenance.fingerprints[3],
    }
    sent = [sum(piece.nbytes for piece in share.pieces) for [share] in everywhere]
    return {"sent": sent, "fingerprints": fingerprints}


@pytest.mark.parametrize(("world", "zero_stage"), [(2, 0), (2, 3)])
def test_each_rank_sends_its_part(tiny_model: Path, world: int, zero_stage: int):
    found = spawn(world, publish, str(tiny_model), zero_stage)
    assert len(set(found["fingerprints"].values())) == 1, found
    equal = sum(found["sent"]) / world
    print(f"bytes sent by each rank: {found['sent']}")
    assert equal > 100_000 and all(0.9 * equal <= count <= 1.1 * equal for count in found["sent"])
