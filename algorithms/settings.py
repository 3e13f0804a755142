"""Settings of algorithms and stages: dataclass fields with limits, checked when an instance is made."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin


def limited(default: Any, least: float | None = None, most: float | None = None) -> Any:
    """A dataclass field for a setting: None, or a value of at least `least` and at most `most`."""
    return field(default=default, metadata={"least": least, "most": most})


def check_settings(made: Any) -> None:
    """Checks the fields of a dataclass instance.

    Raises:
        ValueError: a value that is none of its choices (Literal), or outside its limits (`limited`).
    """
    for item in fields(made):
        value = getattr(made, item.name)
        choices = get_args(item.type)
        if get_origin(item.type) is Literal and value not in choices:
            raise ValueError(f"{item.name} is {value!r}: choose one of {', '.join(map(str, choices))}")
        if value is not None:
            _check_limits(item.name, value, item.metadata.get("least"), item.metadata.get("most"))


def _check_limits(name: str, value: float, least: float | None, most: float | None) -> None:
    too_small = least is not None and not value >= least
    too_large = most is not None and not value <= most
    if too_small or too_large:
        allowed = f"at least {least}" if most is None else f"within {least} and {most}"
        raise ValueError(f"{name} is {value}: it must be {allowed}")


@dataclass(frozen=True)
class Schedule:
    """What a stage changes of the run's settings; None keeps `learner.*` and `trainer.groups_per_step`.

    Attributes:
        warmup: share of the stage's steps in which the learning rate rises linearly, 0 to 1.
    """

    lr: float | None = limited(None, least=0)
    lr_schedule: Literal["constant", "linear", "cosine", None] = None
    warmup: float | None = limited(None, least=0, most=1)
    min_lr_ratio: float | None = limited(None, least=0, most=1)
    groups_per_step: int | None = limited(None, least=1)
    mini_batches: int | None = limited(None, least=1)
    weight_decay: float | None = limited(None, least=0)

    def __post_init__(self) -> None:
        check_settings(self)


AS_THE_RUN = Schedule()
