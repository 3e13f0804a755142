"""The texts that models are compared on: a sample of a run's ledger that does not depend on the models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft_ray.observe.evaluation import CORRECT_ABOVE
from srft_ray.observe.ledger_reading import files_by_step, read_step
from srft_ray.observe.page_groups import spread

KINDS = ("demo", "right", "wrong")
COLUMNS = (
    "group_id",
    "sample",
    "origin",
    "prompt_ids",
    "response_ids",
    "reward",
)


@dataclass(frozen=True)
class Text:
    """A prompt with a response, as token ids.

    Attributes:
        kind: demo, right or wrong.
    """

    kind: str
    step: int
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]


def sampled_texts(
    run_dir: Path,
    per_kind: int,
    most_steps: int,
    longest: int,
) -> list[Text]:
    """At most so many texts of each kind, from steps that are evenly spaced with the first and the last.

    Args:
        longest: texts of more tokens, prompt and response together, are left out.
    """
    files = files_by_step(run_dir)
    steps = spread(sorted(files), most_steps)
    share = max(1, per_kind // max(1, len(steps)))
    return [
        text
        for step in steps
        for text in _of_step(
            files[step],
            step,
            share,
            longest,
        )
    ]


def first_texts(
    run_dir: Path,
    per_kind: int,
    longest: int,
) -> list[Text]:
    """The probe set: texts of the first step, which were sampled before the policy had changed."""
    files = files_by_step(run_dir)
    first = min(files)
    return _of_step(
        files[first],
        first,
        per_kind,
        longest,
    )


def _of_step(
    files: Sequence[Path],
    step: int,
    per_kind: int,
    longest: int,
) -> list[Text]:
    """The first texts of each kind by group and sample."""
    rows = read_step(files, step, COLUMNS).to_pylist()
    rows.sort(key=lambda row: (row["group_id"], row["sample"]))
    texts = [_text(row, step) for row in rows]
    fitting = [text for text in texts if text.response_ids and length_of(text) <= longest]
    found: list[Text] = []
    for kind in KINDS:
        of_kind = [text for text in fitting if text.kind == kind]
        found += of_kind[:per_kind]
    return found


def _text(row: dict[str, Any], step: int) -> Text:
    kind = "demo"
    if row["origin"] != "demo":
        kind = "right" if row["reward"] > CORRECT_ABOVE else "wrong"
    return Text(
        kind,
        step,
        row["prompt_ids"],
        row["response_ids"],
    )


def length_of(text: Text) -> int:
    """Tokens of prompt and response together."""
    return len(text.prompt_ids) + len(text.response_ids)
