"""Judges the responses of an evaluation ledger again, by another verifier."""

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa

from srft_ray.data.benchmark_rows import LETTERS
from srft_ray.verify import Item, VerifierPool

WORKERS = 2
TIMEOUT_S = 5.0


def regrade(table: pa.Table, verifier: str) -> np.ndarray:
    """The reward of each row by that built-in verifier. Rows that match already keep their reward.

    A multiple choice has as many options as MMLU-Pro at most.
    """
    rewards = table["reward"].to_numpy().copy()
    left = [row for row, verdict in enumerate(table["verdict"].to_pylist()) if verdict != "match"]
    responses = table["response"].to_pylist()
    references = table["reference"].to_pylist()
    metadata = [{"letters": LETTERS} if _is_letter(references[row]) else {} for row in left]
    items = [Item(responses[row], references[row], data) for row, data in zip(left, metadata, strict=True)]
    for row, reward in zip(left, _judged(items, verifier), strict=True):
        rewards[row] = reward
    return rewards


def _is_letter(reference: str) -> bool:
    return len(reference) == 1 and reference in LETTERS


def _judged(items: Sequence[Item], verifier: str) -> list[float]:
    if not items:
        return []
    with closing(VerifierPool(verifier, timeout_s=TIMEOUT_S, num_workers=WORKERS)) as pool:
        return [verdict.reward for verdict in pool.verify(items)]
