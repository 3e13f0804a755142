"""Many groups that wait for a version leave the coordinator free for everything else."""

import threading
import time

import psutil
import pytest
import ray

from srft_ray.sync.admission import wait_for_admission
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.health import Heartbeat
from srft_ray.sync.versions import WeightShare

WAITING = 2500  # more than the 1,000 calls that Ray runs at a time in an asynchronous actor


def publish(coordinator, start):
    return coordinator.publish.remote(start.generation, WeightShare(1, ranks=1))


@pytest.mark.full
@pytest.mark.usefixtures("local_ray")
def test_waiting_groups_do_not_make_the_coordinator_deaf():
    coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(0)
    start = ray.get(coordinator.restart.remote(0))
    answers = [coordinator.admit.remote(start.generation, 1) for _ in range(WAITING)]
    started = time.monotonic()
    ray.get(
        coordinator.heartbeat.remote(Heartbeat("engine", "node", 1, 0, 0, 0, start.generation)), timeout=20
    )
    assert ray.get(coordinator.admit.remote(start.generation, 0), timeout=20).admitted
    ray.get(publish(coordinator, start), timeout=20)
    seconds = time.monotonic() - started
    print(f"heartbeat, admission and publication beside {WAITING} waiting groups: {seconds:.2f} s")
    found = ray.get(answers, timeout=60)
    # Those that still waited when the version was published were admitted by it.
    assert sum(answer.admitted for answer in found) > 0, "the publication came after all had given up"
    assert sum(answer.busy for answer in found) > 0


@pytest.mark.full
@pytest.mark.usefixtures("local_ray")
def test_a_group_waits_for_its_version_or_says_what_it_waited_for():
    coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(1)
    start = ray.get(coordinator.restart.remote(0))
    with pytest.raises(TimeoutError, match="waits for policy version 1; the newest is 0, and neither"):
        wait_for_admission(coordinator, start.generation, 2, exact=False, timeout_s=0.2)
    threading.Timer(0.3, lambda: ray.get(publish(coordinator, start))).start()
    admission = wait_for_admission(coordinator, start.generation, 2, exact=False, timeout_s=20)
    assert (admission.offered.version, admission.needed) == (1, 1)


@pytest.mark.full
@pytest.mark.usefixtures("local_ray")
def test_memory_of_calls_that_waited_is_given_back():
    coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(0)
    process = psutil.Process(ray.get(coordinator.process.remote()).pid)
    start = ray.get(coordinator.restart.remote(0))
    used = []
    for version in range(1, 5):
        answers = [coordinator.admit.remote(start.generation, version) for _ in range(400)]
        ray.get(coordinator.leave_requested.remote())
        waiting = process.memory_full_info().uss
        ray.get(coordinator.publish.remote(start.generation, WeightShare(version, ranks=1)), timeout=20)
        assert all(answer.admitted for answer in ray.get(answers, timeout=60))
        used.append((waiting / 2**20, process.memory_full_info().uss / 2**20))
    print(f"MiB while 400 groups waited, and after that: {used}")
    assert sum(before - after for before, after in used) > 8
