"""Groups as blocks of the stream. A block is one column of serialized groups; Ray moves it without looking inside."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms import Group


def as_block(groups: Sequence[Group]) -> dict[str, np.ndarray]:
    return {"group": np.array([pickle.dumps(group) for group in groups], dtype=object)}


def groups_of(block: dict[str, Any]) -> list[Group]:
    return [pickle.loads(group) for group in block["group"]]
