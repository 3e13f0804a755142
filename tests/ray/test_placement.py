"""Real placement by Ray of learners and engines on logical GPUs: every one is where it should be."""

import time
from collections import Counter
from functools import partial
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.train import DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from srft_ray.config.settings import Bounds
from srft_ray.data.plan import StepSize, StreamPlan
from srft_ray.data.stream import ActorPool, execution_options, make_stream
from srft_ray.run.placement import check_placement, choose_placement, learner_resources
from tests.unit.test_placement import resolved

pytestmark = pytest.mark.full

START_S = 200.0  # that all processes have to start


@ray.remote(num_cpus=0)
class Seats:
    """Where everybody is: (kind, node, GPU ids) of each."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str, tuple[str, ...]]] = []

    def take(self, kind: str, node: str, gpus: list[Any]) -> None:
        self.taken.append((kind, node, tuple(sorted(str(gpu) for gpu in gpus))))

    def all(self) -> list[tuple[str, str, tuple[str, ...]]]:
        return self.taken


def sit(seats: Any, kind: str) -> None:
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids()["GPU"]
    ray.get(seats.take.remote(kind, context.get_node_id(), gpus))


class Engine:
    """Gives no block before every process of the run is there: the stream would end without the late ones."""

    def __init__(self, seats: Any, processes: int) -> None:
        self.seats, self.processes = seats, processes
        sit(seats, "engine")

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + START_S
        while len(ray.get(self.seats.all.remote())) < self.processes and time.monotonic() < deadline:
            time.sleep(0.2)
        return block


def train(settings: dict[str, Any]) -> None:
    sit(settings["seats"], "learner")
    for _ in ray.train.get_dataset_shard("train").iter_batches(batch_size=1):
        pass


@pytest.fixture
def cluster(request: pytest.FixtureRequest):
    """Nodes with logical GPUs; the driver is on a node without one."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    for gpus in request.param:
        made.add_node(num_cpus=16, num_gpus=gpus)
    ray.init(address=made.address, log_to_driver=False)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def seats_of(tmp_path: Any, run: Any, placement: Any, learners: int, engines: int) -> list[Any]:
    seats = Seats.remote()
    plan = StreamPlan(1, (StepSize(0, 16),), 1, learners, {}, 0)
    pool = ActorPool(
        partial(Engine, seats, learners + engines), Bounds(engines, engines), 0, 1.0, placement.engine_gpus, 0
    )
    trainer = TorchTrainer(
        train,
        train_loop_config={"seats": seats},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=learners,
            use_gpu=True,
            resources_per_worker=learner_resources(run.config.learner, placement),
        ),
        datasets={"train": lambda: make_stream([(plan, 0)], pool)},
        dataset_config=DataConfig(execution_options=execution_options(), enable_shard_locality=False),
        run_config=RunConfig(storage_path=str(tmp_path)),
    )
    trainer.fit()
    return ray.get(seats.all.remote())


@pytest.mark.parametrize(
    ("cluster", "learners", "engines", "parallel", "colocated"),
    [
        ((1,), 1, 1, 1, True),
        ((2,), 1, 1, 1, False),
        ((2,), 2, 2, 1, True),
        ((4,), 2, 2, 1, False),
        ((4,), 4, 4, 1, True),
        ((4,), 2, 1, 2, False),
        ((8,), 4, 4, 1, False),
        ((8,), 4, 2, 2, False),
        ((8,), 4, 1, 4, False),
        ((8,), 8, 8, 1, True),
        ((4, 4), 4, 4, 1, False),
        ((4, 4), 4, 2, 2, False),
        ((4, 4), 4, 1, 4, False),
        ((4, 4), 8, 8, 1, True),
    ],
    indirect=["cluster"],
)
def test_everybody_is_where_they_should_be(tmp_path, cluster, learners, engines, parallel, colocated):
    run = resolved(engines=engines, learners=learners, tensor_parallel=parallel)
    placement = choose_placement(run, "cuda", True, ray.cluster_resources()["GPU"])
    assert placement.colocated is colocated
    check_placement(run, placement, engines=True)
    seats = seats_of(tmp_path, run, placement, learners, engines)
    assert Counter(kind for kind, _, _ in seats) == {"learner": learners, "engine": engines}
    on_gpu: dict[tuple[str, str], list[str]] = {}
    for kind, node, gpus in seats:
        assert len(gpus) == (parallel if kind == "engine" else 1)
        for gpu in gpus:
            on_gpu.setdefault((node, gpu), []).append(kind)
    expected = [["engine", "learner"]] if colocated else [["engine"], ["learner"]]
    assert all(sorted(kinds) in expected for kinds in on_gpu.values()), on_gpu
