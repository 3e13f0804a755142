"""Which devices learners and engines get, for every number of GPUs, and what can never be placed."""

from typing import Any

import pytest

from algorithms import SRFT
from srft_ray.config.load import make_config
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.errors import UserError
from srft_ray.run import placement as module
from srft_ray.run.cluster import automatic_choices
from srft_ray.run.node_gpus import fits
from srft_ray.run.placement import Placement, check_placement, choose_placement, demand
from srft_ray.run.transport_backend import with_backend

CPUS = 64.0


def resolved(
    placement: str = "auto", engines: Any = 1, learners: Any = 1, learner_gpus: float = 1, **rollout: Any
) -> Resolved:
    values = {
        "model": {"path": "/nowhere"},
        "data": {"path": "/nowhere.jsonl"},
        "cluster": {"placement": placement},
        "rollout": {"num_engines": engines, **rollout},
        "learner": {"num_workers": learners, "gpus_per_worker": learner_gpus},
        "trainer": {"groups_per_step": 8},
    }
    return resolve(make_config(values), SRFT())


def on_nodes(monkeypatch: pytest.MonkeyPatch, *gpus: float) -> float:
    """A cluster whose nodes have so many GPUs; returns their number."""
    nodes = [{"Alive": True, "Resources": {"CPU": CPUS, "GPU": number}} for number in gpus]
    monkeypatch.setattr(module.ray, "nodes", lambda: nodes)
    return sum(gpus)


def test_one_gpu_works_by_default(monkeypatch: pytest.MonkeyPatch):
    gpus = on_nodes(monkeypatch, 1)
    placement = choose_placement(resolved(), "cuda", True, gpus)
    assert placement.colocated and placement.learner_gpus + placement.engine_gpus == 1.0
    assert str(placement) == "learners and engines take turns on the same GPUs"
    check_placement(resolved(), placement, engines=True)


@pytest.mark.parametrize(
    ("gpus", "learners", "engines", "parallel", "colocated"),
    [
        ((2,), 1, 1, 1, False),
        ((4,), 2, 2, 1, False),
        ((4,), 2, 1, 2, False),
        ((8,), 4, 2, 2, False),
        ((8,), 4, 1, 4, False),
        ((4, 4), 4, 1, 4, False),
        ((4, 4), 4, 4, 1, False),
        ((2,), 2, 2, 1, True),
        ((2,), 2, 1, 1, True),
        ((8,), 8, 8, 1, True),
        ((4, 4), 8, 8, 1, True),
    ],
)
def test_auto_takes_turns_only_where_there_are_too_few(
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[int, ...],
    learners: int,
    engines: int,
    parallel: int,
    colocated: bool,
):
    total = on_nodes(monkeypatch, *gpus)
    run = resolved(engines=engines, learners=learners, tensor_parallel=parallel)
    placement = choose_placement(run, "cuda", True, total)
    assert placement.colocated is colocated
    check_placement(run, placement, engines=True)
    assert demand(run, placement, engines=True).gpus <= total


@pytest.mark.parametrize(
    ("gpus", "settings", "wanted"),
    [
        (
            (1,),
            {"max_staleness": 1},
            "together 4 CPUs and 2 GPUs, but the Ray cluster has 64 CPUs and 1 GPUs",
        ),
        (
            (2, 2),
            {"tensor_parallel": 4},
            r"The run asks for .* and 5 GPUs, but the Ray cluster has .* 4 GPUs",
        ),
        ((3, 3), {"tensor_parallel": 4}, r"takes up to 4 GPUs of a node\. The nodes have 3, 3 GPUs"),
        ((2,), {"placement": "colocated", "engines": 2}, r"there must not be more engines than learners"),
        ((4,), {"placement": "colocated", "tensor_parallel": 2}, r"rollout\.tensor_parallel must be 1"),
        ((1,), {"placement": "colocated", "learners": 2, "engines": 1}, "2 learners and 1 engines"),
        ((4,), {"learner_gpus": 1.5}, r"learner\.gpus_per_worker=1\.5: more than one GPU must be a whole"),
        (
            (4, 4),
            {"learners": 4, "learner_gpus": 0.6},
            r"learner\.gpus_per_worker=0\.6: Ray adds up the GPUs of a node, and on nodes of 4, 4 GPUs",
        ),
    ],
)
def test_what_can_never_be_placed_is_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[int, ...], settings: dict[str, Any], wanted: str
):
    total = on_nodes(monkeypatch, *gpus)
    run = resolved(**settings)
    with pytest.raises(UserError, match=wanted) as caught:
        check_placement(run, choose_placement(run, "cuda", True, total), engines=True)
    assert "\n" not in str(caught.value)


def test_turns_need_a_run_without_staleness():
    with pytest.raises(UserError, match=r"rollout\.max_staleness=1 they work at the same time"):
        resolved("colocated", max_staleness=1)


@pytest.mark.parametrize(
    ("placement", "learners", "engines", "wanted"),
    [
        ("separate", 1, 1, Placement("cpu", learner_threads=4)),
        ("separate", 2, 2, Placement("cpu", learner_threads=2)),
        ("colocated", 1, 1, Placement("cpu", True, learner_threads=8, engine_threads=8)),
        ("colocated", 2, 4, Placement("cpu", True, learner_threads=4, engine_threads=2)),
    ],
)
def test_on_this_machine_s_cpu_who_works_has_all_cores(
    placement: str, learners: int, engines: int, wanted: Placement
):
    run = resolved(placement, engines=engines, learners=learners)
    assert choose_placement(run, "cpu", True, cores=8) == wanted


def test_what_is_said_of_turns_on_cpu():
    """In a cluster learners and engines may be on different nodes: no core is of both."""
    run = resolved("colocated")
    run.config.learner.cpus_per_worker = 2.0
    here, in_cluster = (choose_placement(run, "cpu", True, cores=cores) for cores in (8, None))
    assert str(here) == "learners and engines take turns on the same CPU cores"
    assert in_cluster == Placement("cpu", True, learner_threads=2)
    assert str(in_cluster) == "learners and engines take turns, each on the CPUs that it reserves"


def test_a_run_without_engines_takes_no_turns():
    assert choose_placement(resolved("colocated"), "cpu", False, cores=8) == Placement(
        "cpu", learner_threads=8
    )


@pytest.mark.parametrize(
    ("parts", "gpus", "wanted"),
    [
        ([4, 2, 1, 1], [4, 4], True),
        ([1, 1, 2, 4], [4, 4], True),
        ([4, 4, 1], [4, 4], False),
        ([2, 2], [3, 1], False),
        ([0.6, 0.4] * 2, [1, 1], True),
        ([0.6, 0.6], [1], False),
        ([0.6] * 3 + [0.2], [2], False),
        ([2, 0.5, 0.5], [3], True),
        ([2, 0.5, 0.5], [1, 2], True),
        ([2, 0.6, 0.6], [1, 2], False),
    ],
)
def test_parts_are_placed_on_single_gpus_and_nodes(parts: list[float], gpus: list[float], wanted: bool):
    assert fits(parts, gpus) is wanted


@pytest.mark.parametrize(
    ("address", "placement", "wanted"),
    [
        (None, Placement("cpu", learner_threads=1), []),
        ("1.2.3.4:6379", Placement("cpu", learner_threads=1), ["the Ray cluster has no GPU now"]),
        (None, Placement("cuda", True, 0.6, 0.4), ["take turns on the same GPUs"]),
    ],
)
def test_what_was_chosen_automatically_is_said(
    monkeypatch: pytest.MonkeyPatch, address: str | None, placement: Placement, wanted: list[str]
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = resolved().config
    config.cluster.address = address
    said = automatic_choices(config, placement)
    assert len(said) == len(wanted) and all(part in text for part, text in zip(wanted, said, strict=True))


@pytest.mark.parametrize(("cpus", "threads"), [(1.0, 1), (1.2, 2), (2.5, 3)])
def test_on_a_cluster_a_learner_has_a_thread_for_each_begun_cpu(cpus: float, threads: int):
    run = resolved()
    run.config.learner.cpus_per_worker = cpus
    assert choose_placement(run, "cpu", True).learner_threads == threads


@pytest.mark.parametrize(
    ("device", "colocated", "backend"),
    [("cpu", False, "gloo"), ("cuda", True, "gloo"), ("cuda", False, "nccl")],
)
def test_weights_are_sent_by_nccl_between_gpus(device: str, colocated: bool, backend: str):
    rollout = resolved().config.rollout
    placement = Placement(device, colocated)
    assert with_backend(rollout, placement).transport_backend == backend
    rollout.transport_backend = "nccl"
    if backend == "nccl":
        assert with_backend(rollout, placement).transport_backend == "nccl"
    else:
        with pytest.raises(UserError, match="transport_backend=nccl needs GPUs of their own"):
            with_backend(rollout, placement)
