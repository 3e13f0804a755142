"""Time of a publication, divided by that of copying the bytes of the weights once.

    python benchmarks/publication.py [--transport collective --mib 128 --learners 2 --engines 2 --rounds 3]

Learners and engines are actors on one machine, without a model and without vLLM: a publication ends when
every engine has the files in shared memory and has read their fingerprint. Fingerprints, which learners and
engines compute besides, are also timed without the rest. Where other work runs on the machine, compare the
seconds of CPU, which are the sum over all learners and engines.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync.admission import wait_for_admission
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.fingerprint import FingerprintedWeights, fingerprint, folder_fingerprint
from srft_ray.sync.pieces import Rank
from srft_ray.sync.transports import transport_class
from srft_ray.sync.versions import fingerprint_of

TENSORS = 100
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock and of CPU."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def make_weights(mib: int) -> dict[str, torch.Tensor]:
    """Tensors of float32, together of the given size, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    words = mib * 2**18 // TENSORS
    return {f"layer.{number}": torch.rand(words, generator=generator) for number in range(TENSORS)}


class LearnerActor:
    """One rank of the learners."""

    def __init__(self, coordinator: object, generation: int, rank: Rank, mib: int, transport: str) -> None:
        torch.set_num_threads(1)
        self.weights = make_weights(mib)
        self.copy = {name: torch.zeros_like(tensor) for name, tensor in self.weights.items()}
        self.rank = rank
        self.transport = transport_class(transport)(coordinator, section(), generation)
        self.transport.rank = rank

    def publish(self, version: int) -> tuple[float, int]:
        """(seconds, this rank's sum of hashes)."""
        weights = FingerprintedWeights(self.weights.items(), self.rank)
        cost = timed(lambda: self.transport.publish(version, weights, sender=self.rank.number == 0))
        return cost.wall, weights.exhaust()

    def copy_once(self) -> Cost:
        """To copy the bytes from memory to memory."""
        return timed(lambda: [self.copy[name].copy_(tensor) for name, tensor in self.weights.items()])

    def fingerprint(self) -> Cost:
        """To hash all tensors."""
        return timed(lambda: fingerprint(self.weights.items()))

    def cpu_s(self) -> float:
        """Seconds of CPU of this process so far."""
        return time.process_time()

    def close(self) -> None:
        """Removes the files of the last versions."""
        self.transport.close()

    def change(self) -> None:
        """Another version, so that no engine finds its files."""
        self.weights["layer.0"] += 1


class EngineActor:
    """What an engine does besides vLLM."""

    def __init__(self, coordinator: object, generation: int, transport: str) -> None:
        torch.set_num_threads(1)
        self.coordinator = coordinator
        self.generation = generation
        self.transport = transport_class(transport)(coordinator, section())
        self.found = ""

    def fetch(self, version: int) -> tuple[float, str]:
        """(seconds, fingerprint)."""
        admission = wait_for_admission(self.coordinator, self.generation, version, True, START_TIMEOUT_S)
        cost = timed(lambda: self.transport.fetch(self._reload, admission.offered))
        return cost.wall, self.found

    def cpu_s(self) -> float:
        """Seconds of CPU of this process so far."""
        return time.process_time()

    def _reload(self, folder: Path) -> None:
        self.found = folder_fingerprint(folder)


def section() -> RolloutSection:
    return RolloutSection(transport_backend="gloo", transport_chunk_mb=64)


@dataclass(frozen=True)
class Publication:
    """What one publication took."""

    publish_s: float
    fetch_s: float
    cpu_s: float


def publish(version: int, senders: list, receivers: list) -> Publication:
    """One publication, to its end at the slowest engine."""
    everybody = [*senders, *receivers]
    before = sum(ray.get([one.cpu_s.remote() for one in everybody]))
    sent = ray.get([sender.publish.remote(version) for sender in senders])
    received = ray.get([receiver.fetch.remote(version) for receiver in receivers])
    after = sum(ray.get([one.cpu_s.remote() for one in everybody]))
    published = fingerprint_of(sum(part for _, part in sent))
    assert {found for _, found in received} == {published}, "an engine has other weights"
    slowest = max(seconds for seconds, _ in sent), max(seconds for seconds, _ in received)
    return Publication(*slowest, after - before)


def median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(c.wall for c in costs), statistics.median(c.cpu for c in costs))


def main(transport: str, mib: int, learners: int, engines: int, rounds: int) -> None:
    """Prints the medians of the rounds; the first one, which allocates memory, does not count."""
    cpus = learners + engines + 1
    ray.init("local", num_cpus=cpus, logging_level="error", include_dashboard=False)
    coordinator = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=100).remote(0)
    generation = ray.get(coordinator.restart.remote(1)).generation
    ranks = [Rank(number, learners) for number in range(learners)]
    about = coordinator, generation
    senders = [ray.remote(LearnerActor).remote(*about, rank, mib, transport) for rank in ranks]
    receivers = [ray.remote(EngineActor).remote(*about, transport) for _ in range(engines)]
    ray.get([receiver.cpu_s.remote() for receiver in receivers], timeout=START_TIMEOUT_S)
    copies, hashes, publications = [], [], []
    for version in range(1, rounds + 2):
        ray.get([sender.change.remote() for sender in senders])
        copies.append(ray.get(senders[0].copy_once.remote()))
        hashes.append(ray.get(senders[0].fingerprint.remote()))
        publications.append(publish(version, senders, receivers))
        metrics = ray.get(coordinator.engine_metrics.remote(0, version))
        reached = metrics["publications/nodes_reached"]
        print(f"version {version}: {publications[-1]}, nodes reached: {reached:.0f}", flush=True)
    ray.get([sender.close.remote() for sender in senders])
    copy, hashed = median(copies[1:]), median(hashes[1:])
    publish_s = statistics.median(one.publish_s for one in publications[1:])
    fetch_s = statistics.median(one.fetch_s for one in publications[1:])
    cpu_s = statistics.median(one.cpu_s for one in publications[1:])
    print(
        f"{transport}: {mib} MiB, {learners} learners, {engines} engines on one node; medians of {rounds} "
        f"rounds after the first"
    )
    for what, seconds, unit in (
        ("copy once", copy.wall, copy.wall),
        ("fingerprint", hashed.wall, copy.wall),
        ("learners publish", publish_s, copy.wall),
        ("engines have it", fetch_s, copy.wall),
        ("publication", publish_s + fetch_s, copy.wall),
        ("CPU: copy once", copy.cpu, copy.cpu),
        ("CPU: fingerprint", hashed.cpu, copy.cpu),
        ("CPU: publication", cpu_s, copy.cpu),
    ):
        print(f"{what:>18}: {seconds:6.3f} s, {seconds / unit:5.2f} x copy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transport", default="collective", choices=("collective", "object_store"))
    parser.add_argument("--mib", type=int, default=128, help="size of the weights (default 128)")
    parser.add_argument("--learners", type=int, default=2)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    main(**vars(parser.parse_args()))
