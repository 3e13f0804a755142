"""Write the training file and the evaluation sets of the world "strings".

python examples/worlds/write_data.py DIRECTORY
"""

import argparse
import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from strings import ALL_BANDS, Problem, distinct, with_wrong_step, worked

# The training prompts by band, and how many of each have a demonstration.
DEMONSTRATIONS = {"habit": 24, "edge": 24, "missing": 48}
PROMPTS = {"habit": 180, "edge": 180, "missing": 120}
WRONG_SHARE = 0.25
COPIES = 5  # of each demonstrated prompt, so that half of the training prompts have a demonstration
EVALUATION_PROMPTS = 128
SEED = 0


def evaluation_sets(taken: set[str]) -> dict[str, list[Problem]]:
    """The prompts of each band, which training never has."""
    return {
        band: list(islice(distinct(band, random.Random(f"{band} {SEED}"), taken), EVALUATION_PROMPTS))
        for band in ALL_BANDS
    }


def demonstrated(taken: set[str]) -> list[dict[str, Any]]:
    """The rows with a demonstration; a quarter of the demonstrations of each band has a wrong step."""
    rng = random.Random(f"demonstrations {SEED}")
    rows = []
    for band, number in DEMONSTRATIONS.items():
        problems = list(islice(distinct(band, rng, taken), number))
        wrong = set(rng.sample(range(number), round(WRONG_SHARE * number)))
        for place, problem in enumerate(problems):
            right = worked(problem.operations, problem.states)
            text = with_wrong_step(problem, rng) if place in wrong else right
            rows.append(row(problem, band) | {"demonstration": text})
    return rows


def training_rows(taken: set[str]) -> list[dict[str, Any]]:
    """Rows with demonstrations, each repeated, and as many prompts without one."""
    rng = random.Random(f"prompts {SEED}")
    repeated = demonstrated(taken) * COPIES
    others = [
        row(problem, band)
        for band, number in PROMPTS.items()
        for problem in islice(distinct(band, rng, taken), number)
    ]
    return repeated + others


def row(problem: Problem, band: str) -> dict[str, Any]:
    return {"prompt": problem.prompt, "answer": problem.answer, "metadata": {"band": band}}


def write(folder: Path) -> None:
    """Writes train.jsonl and a file for each band; the same files at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for band, problems in evaluation_sets(taken).items():
        _write_lines(folder / f"{band}.jsonl", [row(problem, band) for problem in problems])
    _write_lines(folder / "train.jsonl", training_rows(taken))


def _write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(found) + "\n" for found in rows)
    # The time of a file that is current is part of the identity of evaluations and must not change.
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", help="where the files are written")
    write(Path(parser.parse_args().directory))


if __name__ == "__main__":
    main()
