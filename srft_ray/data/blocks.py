"""Groups as blocks of the stream.

A block is one column of serialized groups; Ray does not look inside them.
"""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from algorithms import Group


def as_block(groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """A column `group` with one serialized group a row."""
    return {"group": np.array([pickle.dumps(group) for group in groups], dtype=object)}


def groups_of(block: dict[str, Any]) -> list[Group]:
    """The groups of a block that `as_block` made, in its order."""
    return [pickle.loads(group) for group in block["group"]]
