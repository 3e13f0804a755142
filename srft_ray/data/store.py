"""Prepared rows on disk, by number.

The file is a memory-mapped Arrow file, so that memory does not grow with the data set.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

BATCH = 512  # rows of each record batch but the last
SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("reference", pa.string()),
        ("metadata", pa.string()),
        ("demonstrations", pa.list_(pa.struct([("text", pa.string()), ("ids", pa.list_(pa.int32()))]))),
    ]
)


@dataclass
class Counts:
    """What preparing found; lengths in tokens, demonstrations with their prompt."""

    rows: int = 0
    kept: int = 0
    overlong_prompts: int = 0
    overlong_demonstrations: int = 0
    demonstrations: int = 0
    without_answer: int = 0
    longest_prompt: int = 0
    longest_demonstration: int = 0
    prompt_tokens: int = 0
    demonstration_tokens: int = 0


@dataclass(frozen=True)
class PreparedData:
    """Rows by number.

    Attributes:
        file: path of the Arrow file.
        counts: what was found when it was prepared.
    """

    file: str
    counts: Counts

    def row(self, index: int) -> dict[str, Any]:
        """Row `index`, 0 <= index < counts.kept: prompt, prompt_ids, reference, metadata, demonstrations."""
        batch, offset = divmod(index, BATCH)
        row = _open(self.file).get_batch(batch).slice(offset, 1).to_pylist()[0]
        return {**row, "metadata": json.loads(row["metadata"])}

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows in the order of the source."""
        return (self.row(index) for index in range(self.counts.kept))


@lru_cache(maxsize=8)
def _open(file: str) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(file))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def shuffled(position: int, rows: int, seed: int) -> tuple[int, int]:
    """(epoch, row) at a position of the endless seeded order of `rows` rows.

    Every epoch is a permutation of its own, a pure function of seed and epoch.
    """
    epoch, place = divmod(position, rows)
    return epoch, int(_permutation(seed, epoch, rows)[place])
