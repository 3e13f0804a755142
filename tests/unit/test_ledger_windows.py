"""The files of many steps become one; no row is lost or twice, whatever happens meanwhile."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from srft_ray.observe import ledger, ledger_reading, ledger_windows

WINDOW = 10
RANKS = 2


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_windows, "WINDOW_STEPS", WINDOW)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "groups").mkdir()
    return tmp_path


def write(run_dir: Path, steps: range) -> None:
    for step in steps:
        for rank in range(RANKS):
            rows = [{**dict.fromkeys(ledger.SCHEMA.names), "step": step, "sample": rank}]
            file = run_dir / "groups" / f"step-{step:06d}-{rank:04d}.parquet"
            pq.write_table(pa.Table.from_pylist(rows, ledger.SCHEMA), file)


def files(run_dir: Path) -> list[str]:
    return sorted(file.name for file in (run_dir / "groups").iterdir())


def check_rows(run_dir: Path, steps: int) -> None:
    table = pyarrow.dataset.dataset(run_dir / "groups", format="parquet").to_table()
    found = sorted((row["step"], row["sample"]) for row in table.to_pylist())
    assert found == [(step, rank) for step in range(steps) for rank in range(RANKS)]
    assert table.schema.equals(ledger.SCHEMA)


def test_whole_windows_below_a_checkpoint_become_one_file(run_dir: Path):
    write(run_dir, range(25))
    ledger_windows.merge(run_dir, 19)
    assert len(files(run_dir)) == 1 + 15 * RANKS
    ledger_windows.merge(run_dir, 20)
    assert files(run_dir)[-2:] == ["steps-000000-000009.parquet", "steps-000010-000019.parquet"]
    assert len(files(run_dir)) == 2 + 5 * RANKS
    check_rows(run_dir, 25)


def test_an_older_checkpoint_cuts_a_merged_file_and_the_repeated_steps_join_it(run_dir: Path):
    write(run_dir, range(20))
    ledger_windows.merge(run_dir, 20)
    ledger.truncate(run_dir, 7)
    check_rows(run_dir, 7)
    write(run_dir, range(7, 22))
    check_rows(run_dir, 22)
    ledger_windows.merge(run_dir, 21)
    assert files(run_dir)[-2:] == ["steps-000000-000009.parquet", "steps-000010-000019.parquet"]
    check_rows(run_dir, 22)


@pytest.mark.parametrize("removed", [0, 1, WINDOW * RANKS])
def test_a_crash_while_files_are_removed(run_dir: Path, monkeypatch: pytest.MonkeyPatch, removed: int):
    """The merged file is whole, and only some of its parts are gone."""
    write(run_dir, range(12))
    left = removed
    unlink = Path.unlink

    def crash(path: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        unlink(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", crash)
        patched.setattr(Path, "replace", _crash_at_the_end(Path.replace))
        ledger_windows.merge(run_dir, 12)
    ledger.truncate(run_dir, 12)
    check_rows(run_dir, 12)
    assert ".steps-000000-000009.parquet" not in files(run_dir)


def _crash_at_the_end(replace):
    def crash(path: Path, target: Path) -> Path:
        if path.name.startswith(".steps") and path.suffix == ".parquet":
            raise KeyboardInterrupt
        return replace(path, target)

    return crash


def test_a_crash_while_the_merged_file_is_written(run_dir: Path):
    write(run_dir, range(12))
    (run_dir / "groups/.steps-000000-000009.part").write_bytes(b"half of it")
    check_rows(run_dir, 12)
    ledger_windows.merge(run_dir, 12)
    check_rows(run_dir, 12)
    assert len(files(run_dir)) == 1 + 2 * RANKS


def test_readers_do_not_see_a_merged_file_before_its_time(run_dir: Path):
    write(run_dir, range(2))
    whole = pyarrow.dataset.dataset(run_dir / "groups", format="parquet").to_table()
    pq.write_table(whole, run_dir / "groups/.steps-000000-000009.parquet")
    assert ledger_reading.read_step(ledger_reading.files_by_step(run_dir)[1], 1).num_rows == RANKS


def test_large_windows_and_other_columns_are_left_as_they_are(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    write(run_dir, range(12))
    other = pa.table({"step": [3]})
    pq.write_table(other, run_dir / "groups/step-000003-0001.parquet")
    before = files(run_dir)
    ledger_windows.merge(run_dir, 12)
    assert files(run_dir) == before
    write(run_dir, range(3, 4))
    monkeypatch.setattr(ledger_windows, "MAX_BYTES", 10)
    ledger_windows.merge(run_dir, 12)
    assert files(run_dir) == before
