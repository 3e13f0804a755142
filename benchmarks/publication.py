"""Time of a publication through Ray's object store, divided by that of copying the bytes of the weights once.

    python benchmarks/publication.py [--mib 512 --learners 2 --engines 4 --rounds 5]

Learners and engines are actors on one machine, without a model and without vLLM: a publication ends when
every engine has the files in shared memory and has read their fingerprint. Fingerprints, which learners and
engines compute besides, are also timed without the rest.
"""

import argparse
import statistics
import time
from pathlib import Path

import ray
import torch

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.fingerprint import FingerprintedWeights, fingerprint, folder_fingerprint
from srft_ray.sync.pieces import Rank
from srft_ray.sync.transport import ObjectStoreTransport
from srft_ray.sync.versions import fingerprint_of

TENSORS = 100


def make_weights(mib: int) -> dict[str, torch.Tensor]:
    """Tensors of float32, together of the given size, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    words = mib * 2**18 // TENSORS
    return {f"layer.{number}": torch.randn(words, generator=generator) for number in range(TENSORS)}


class LearnerActor:
    """One rank of the learners."""

    def __init__(self, coordinator: object, generation: int, rank: Rank, mib: int) -> None:
        torch.set_num_threads(1)
        self.weights = make_weights(mib)
        self.copy = {name: torch.zeros_like(tensor) for name, tensor in self.weights.items()}
        self.rank = rank
        self.transport = ObjectStoreTransport(coordinator, RolloutSection(), generation)
        self.transport.rank = rank

    def publish(self, version: int) -> tuple[float, int]:
        """(seconds, this rank's sum of hashes)."""
        started = time.perf_counter()
        weights = FingerprintedWeights(self.weights.items(), self.rank)
        self.transport.publish(version, weights, sender=self.rank.number == 0)
        return time.perf_counter() - started, weights.exhaust()

    def copy_once(self) -> float:
        """Seconds to copy the bytes from memory to memory."""
        started = time.perf_counter()
        for name, tensor in self.weights.items():
            self.copy[name].copy_(tensor)
        return time.perf_counter() - started

    def fingerprint(self) -> float:
        """Seconds to hash all tensors."""
        started = time.perf_counter()
        fingerprint(self.weights.items())
        return time.perf_counter() - started

    def change(self) -> None:
        """Another version, so that no engine finds its files."""
        self.weights["layer.0"] += 1


class EngineActor:
    """What an engine does besides vLLM."""

    def __init__(self, coordinator: object) -> None:
        torch.set_num_threads(1)
        self.transport = ObjectStoreTransport(coordinator, RolloutSection())
        self.found = ""

    def fetch(self) -> tuple[float, str]:
        """(seconds, fingerprint)."""
        started = time.perf_counter()
        self.transport.fetch(self._reload)
        return time.perf_counter() - started, self.found

    def _reload(self, folder: Path) -> None:
        self.found = folder_fingerprint(folder)


def main(mib: int, learners: int, engines: int, rounds: int) -> None:
    """Prints the medians of the rounds; the first one, which allocates memory, does not count."""
    ray.init(num_cpus=learners + engines + 1, logging_level="error", include_dashboard=False)
    coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(0)
    generation = ray.get(coordinator.restart.remote(1)).generation
    ranks = [Rank(number, learners) for number in range(learners)]
    senders = [ray.remote(LearnerActor).remote(coordinator, generation, rank, mib) for rank in ranks]
    receivers = [ray.remote(EngineActor).remote(coordinator) for _ in range(engines)]
    copies, hashes, publications, fetches = [], [], [], []
    for version in range(1, rounds + 2):
        ray.get([sender.change.remote() for sender in senders])
        copies.append(ray.get(senders[0].copy_once.remote()))
        hashes.append(ray.get(senders[0].fingerprint.remote()))
        sent = ray.get([sender.publish.remote(version) for sender in senders])
        publications.append(max(seconds for seconds, _ in sent))
        received = ray.get([receiver.fetch.remote() for receiver in receivers])
        fetches.append(max(seconds for seconds, _ in received))
        published = fingerprint_of(sum(part for _, part in sent))
        assert {found for _, found in received} == {published}, "an engine has other weights"
    copy_s, hash_s, publish_s, fetch_s = (
        statistics.median(times[1:]) for times in (copies, hashes, publications, fetches)
    )
    print(f"{mib} MiB, {learners} learners, {engines} engines on one node; medians of {rounds} rounds")
    for what, seconds in (
        ("copy once", copy_s),
        ("fingerprint", hash_s),
        ("learners publish", publish_s),
        ("engines have it", fetch_s),
        ("publication", publish_s + fetch_s),
    ):
        print(f"{what:>18}: {seconds:6.3f} s, {seconds / copy_s:5.2f} x copy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512, help="size of the weights (default 512)")
    parser.add_argument("--learners", type=int, default=2)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    main(**vars(parser.parse_args()))
