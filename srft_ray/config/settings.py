"""Fields of the config sections: each has a default, a documentation, limits, and a rule for resumed runs."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from srft_ray.errors import UserError, nearest, require


def setting(default: Any, doc: str, *, may_change: bool = False, **limits: Any) -> Any:
    """A field of a config section.

    Args:
        default: the value, or a type (list, dict) whose empty instance is the default.
        doc: what the setting means, with its unit; docs/configuration.md is made from it.
        may_change: whether a run may be resumed with another value, because no update depends on it.
        limits: `choices=(…)`, `least=…`, `above=…`, `most=…`; None is within all limits.
    """
    metadata = {"doc": doc, "may_change": may_change, "limits": limits}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_limits(key: str, value: Any, limits: dict[str, Any]) -> None:
    """Raises UserError if the value of a key is outside its limits. NaN is within no limit."""
    choices, least, above, most = (limits.get(name) for name in ("choices", "least", "above", "most"))
    if value is None:
        return
    if choices and value not in choices:
        raise UserError(f"{key} is {value!r}: {nearest(value, choices)}")
    require(least is None or value >= least, f"{key} must be at least {least}, not {value}.")
    require(above is None or value > above, f"{key} must be above {above}, not {value}.")
    require(most is None or value <= most, f"{key} must be at most {most}, not {value}.")


@dataclass(frozen=True)
class Bounds:
    """How many learners or engines a run may have: from `low` to `high`."""

    low: int
    high: int

    @property
    def elastic(self) -> bool:
        return self.low < self.high

    def __iter__(self) -> Iterator[int]:
        """Every number within the bounds."""
        return iter(range(self.low, self.high + 1))

    @classmethod
    def parse(cls, value: Any, key: str) -> "Bounds":
        """From n or [min, max]. Raises UserError for anything else."""
        pair: Sequence[Any] = value if isinstance(value, list) else [value, value]
        whole = len(pair) == 2 and all(
            type(number) is int for number in pair
        )  # a bool is not a number of workers
        require(
            whole and 1 <= pair[0] <= pair[1],
            f"{key} must be a whole number of at least 1 or [min, max], not {value!r}.",
        )
        return cls(pair[0], pair[1])
