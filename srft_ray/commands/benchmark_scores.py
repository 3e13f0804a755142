"""What the tables of `srft-ray benchmark` are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srft_ray.observe.evaluation import Outcomes

MISSING = "–"


@dataclass(frozen=True)
class Scores:
    """A model's outcomes on one set; `lenient`: each prompt's average by the lenient grader."""

    strict: Outcomes
    lenient: np.ndarray | None = None

    @property
    def averages(self) -> np.ndarray:
        return self.strict.means(self.strict.rewards)


Results = Mapping[str, Mapping[str, Scores]]  # by model, then by set


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
