"""Seeded mutations of a valid config and of data files: the run starts, or is refused in one sentence."""

import json
import math
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from srft_ray.commands.cli import main
from srft_ray.text import sanitize_text
from tests.conftest import ROWS, base_config, write_jsonl

MUTATIONS = range(200)
QUICK = range(0, 200, 10)  # without the `full` mark
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 10**30, 0.5, -0.5, 1e300, 1e-300, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "auto",
        "no",
        "1",
        "1e-6",
        "../..",
        "/",
        "\0",
        "\x1b[31m",
        "é" * 300,
        "${oc.env:HOME}",
        "${x.y}",
    ),
    *([], [1], [2, 1], [None], ["a", {}], {}, {"x": 1}, {"name": "srft"}, {1: 2}),
]
ODD_TEXT = [
    ":",
    "{",
    "}",
    "[",
    "]",
    "-",
    "\t",
    "#",
    "&a",
    "*a",
    "!!python/object:os.system",
    "%",
    "'",
    '"',
    "\n",
]
ODD_TEXT += ["\0", "\x7f", "\ufeff", "é", "2026-01-01", "0x1F", "1_000", "~", "<<: *a", "---\n"]


class Started(BaseException):
    """The config and the data were accepted; no handler of the command may take it for an error."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise Started

    monkeypatch.setattr("srft_ray.run.cluster.start_ray", start)


def leaves(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in nested dictionaries, sections included."""
    found = [path] if path else []
    if isinstance(values, dict):
        for key, value in values.items():
            found += leaves(value, (*path, key))
    return found


def mutate_value(values: dict[str, Any], rng: random.Random) -> None:
    """Replaces, removes, renames or adds one key."""
    *parents, key = rng.choice(leaves(values))
    section = values
    for parent in parents:
        section = section[parent]
    action = rng.randrange(4)
    if action == 0:
        del section[key]
    elif action == 1:
        section[f"{key}{rng.choice(string.ascii_letters)}"] = section.pop(key)
    elif action == 2 and isinstance(section[key], dict):
        section[key][rng.choice(ODD_TEXT)] = rng.choice(ODD_VALUES)
    else:
        section[key] = rng.choice(ODD_VALUES)


def mutate_text(text: str, rng: random.Random, odd: list[str]) -> str:
    """Cuts, removes, repeats or inserts something at one place."""
    place = rng.randrange(len(text))
    length = rng.randrange(1, 12)
    choices = [
        text[:place],
        text[:place] + text[place + length :],
        text[: place + length] + text[place:],
        text[:place] + rng.choice(odd) + text[place:],
    ]
    return rng.choice(choices)


def outcome(capfd: pytest.CaptureFixture[str], config: Path) -> str:
    """`started`, or the sentence of the refusal."""
    capfd.readouterr()
    try:
        code = main(["train", str(config)])
    except Started:
        return "started"
    out, err = capfd.readouterr()
    assert code == 2, (out, err)
    assert err.startswith("srft-ray: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert sanitize_text(err) == err, err
    return err


def full(numbers: range) -> list[Any]:
    marks = {number: () if number in QUICK else pytest.mark.full for number in numbers}
    return [pytest.param(number, marks=mark) for number, mark in marks.items()]


@pytest.mark.parametrize("number", full(MUTATIONS))
def test_mutated_configs(tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], number: int):
    rng = random.Random(number)
    values = base_config(
        tmp_path,
        tiny_model,
        algorithm={"name": "srft", "sft_scale": 0.5},
        learner={"lr": 1e-5, "zero_stage": 2, "betas": [0.9, 0.99], "num_workers": 1},
        rollout={"temperature": 1.0, "max_staleness": 1, "num_engines": [1, 2]},
        verifier={"name": "math", "timeout_s": 2.0},
        evaluation={"samples": 2, "data": {"held": {"path": str(tmp_path / "data.jsonl")}}},
    )
    config = tmp_path / "config.yaml"
    if number % 2:
        for _ in range(rng.choice([1, 1, 2, 4])):
            mutate_value(values, rng)
        text = yaml.safe_dump(values, allow_unicode=True)
    else:
        text = mutate_text(yaml.safe_dump(values), rng, ODD_TEXT)
    config.write_text(text, encoding="utf-8")
    outcome(capfd, config)


def mutated_lines(folder: Path, rng: random.Random) -> Path:
    path = write_jsonl(folder / "rows.jsonl", ROWS)
    text = mutate_text(path.read_text(), rng, [*ODD_TEXT, "\\ud800", "\\u0000", "NaN", "1e999", "[" * 5000])
    raw = text.encode()
    if rng.random() < 0.3:
        place = rng.randrange(len(raw))
        raw = raw[:place] + bytes(rng.randrange(256) for _ in range(4)) + raw[place:]
    path.write_bytes(raw)
    return path


def mutated_values(folder: Path, rng: random.Random) -> Path:
    rows = [dict(row) for row in ROWS]
    row = rng.choice(rows)
    row[rng.choice(list(row))] = rng.choice(ODD_VALUES)
    row[rng.choice(["metadata", "prompt", "id", "x"])] = rng.choice(ODD_VALUES)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mutated_table(folder: Path, rng: random.Random) -> Path:
    path = folder / "rows.parquet"
    columns: dict[str, Any] = {key: [row[key] for row in ROWS] for key in ROWS[0]}
    column = rng.choice(list(columns))
    values = [
        pa.array([None] * len(ROWS)),
        pa.array(range(len(ROWS))),
        pa.array([b"\xff\xfe"] * len(ROWS)),
        pa.array([[1, 2]] * len(ROWS)),
        pa.array([{"role": "user", "content": None}] * len(ROWS)),
        pa.array([[{"role": "user", "content": "hi"}]] * len(ROWS)),
        pa.array([1.5, math.nan] * (len(ROWS) // 2)),
        pa.array(range(len(ROWS)), pa.timestamp("s")),
    ]
    if rng.random() < 0.5:
        columns[column] = rng.choice(values)
    pq.write_table(pa.table(columns), path)
    if rng.random() < 0.5:
        raw = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 3, 30])):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.3 else raw)
    return path


MUTATIONS_OF_DATA: list[Callable[[Path, random.Random], Path]] = [
    mutated_lines,
    mutated_values,
    mutated_table,
]


@pytest.mark.parametrize("number", full(MUTATIONS))
def test_mutated_data(tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], number: int):
    rng = random.Random(number)
    data = MUTATIONS_OF_DATA[number % 3](tmp_path, rng)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(base_config(tmp_path, tiny_model, data={"path": str(data)})))
    outcome(capfd, config)


def test_the_mutations_reach_both_outcomes(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
):
    """A valid config starts, so that a refusal of everything would be noticed."""
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(base_config(tmp_path, tiny_model)))
    assert outcome(capfd, config) == "started"
    config.write_text("algorithm: [")
    assert "algorithm" in outcome(capfd, config) or "YAML" in outcome(capfd, config)
