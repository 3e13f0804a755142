"""The ledger on disk: any text can be written, and only its own files are removed."""

import pyarrow.parquet as pq
import pytest

from algorithms import Completion, Group
from srft_ray.observe import ledger


def group(text, answer=None):
    rollout = Completion(0, "rollout", text, [1, 2, 3], [0.0, -0.5, -1.0], 0, answer=answer, prefix=1)
    demonstration = Completion(1, "demo", text, [1])
    return Group(3, 7, text, [1], text, completions=[rollout, demonstration])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb\udc00", "\x1b[2J\n\t\x00", "plain", ""], ids=ascii)
def test_any_text_is_written_and_only_lone_surrogates_are_replaced(tmp_path, text):
    """A lone surrogate in an answer broke the write, and every repetition of the step."""
    (tmp_path / "groups").mkdir()
    ledger.write(tmp_path, 3, 0, [group(text, answer=text)])
    rows = pq.read_table(tmp_path / "groups/step-000003-0000.parquet").to_pylist()
    expected = "".join("?" if "\ud800" <= character <= "\udfff" else character for character in text)
    assert len(rows) == 2
    for column in ("prompt", "response", "reference"):
        assert [row[column] for row in rows] == [expected] * 2
    assert [row["answer"] for row in rows] == [expected, None]
    assert [row["logprobs"] for row in rows] == [[None, -0.5, -1.0], None]


def test_what_is_not_of_the_ledger_stays(tmp_path):
    (tmp_path / "groups").mkdir()
    others = ["step-notes.txt", "step-4-backup", "step-000004-0000.parquet.bak"]
    for name in [*others, "step-000004-0000.parquet", "step-000004-0001.part"]:
        (tmp_path / "groups" / name).touch()
    ledger.truncate(tmp_path, 0)
    assert sorted(file.name for file in (tmp_path / "groups").iterdir()) == sorted(others)
