"""One process trains in a run directory, also where the file system's own lock means nothing."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from srft_ray.errors import UserError
from srft_ray.run import lock
from srft_ray.run.lock import LOCK, Owner, claimed
from srft_ray.sync.processes import start_time


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that grants its lock to everybody."""
    monkeypatch.setattr(lock.fcntl, "flock", lambda file, operation: None)


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 0.5)


def leave_owner(folder: Path, owner: Owner) -> None:
    (folder / LOCK).write_text(json.dumps(asdict(owner)))


def refused(folder: Path) -> bool:
    try:
        with claimed(folder):
            return False
    except UserError as error:
        assert "Another process trains in the run directory" in str(error)
        return True


def test_a_living_process_on_this_machine_keeps_its_lock_without_flock(tmp_path: Path, without_flock: None):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        owner = replace(Owner.this_process(), pid=other.pid, started=start_time(other.pid))
        leave_owner(tmp_path, owner)
        assert refused(tmp_path)
        leave_owner(tmp_path, replace(owner, started=owner.started + 1))
        assert not refused(tmp_path), "the process id is used again by another process"
        leave_owner(tmp_path, owner)
        other.kill()
        other.wait()
        assert not refused(tmp_path)


def test_an_owner_on_another_machine_lives_while_its_heartbeat_changes(
    tmp_path: Path, without_flock: None, short_silence: None
):
    elsewhere = replace(Owner.this_process(), host="other", boot="another boot")
    leave_owner(tmp_path, elsewhere)
    assert not refused(tmp_path), "it has been silent"
    leave_owner(tmp_path, elsewhere)
    program = (
        "import json, pathlib, sys, time\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "owner = json.loads(path.read_text())\n"
        "for owner['beats'] in range(100):\n"
        "    path.write_text(json.dumps(owner)); time.sleep(0.1)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / LOCK)]) as beating:
        assert refused(tmp_path)
        beating.kill()


def test_the_owner_writes_heartbeats_and_leaves_an_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "HEARTBEAT_INTERVAL_S", 0.01)
    with claimed(tmp_path):
        deadline = time.monotonic() + 5
        while not (text := (tmp_path / LOCK).read_text()) or json.loads(text)["beats"] == 0:
            assert time.monotonic() < deadline
        assert json.loads((tmp_path / LOCK).read_text() or text)["pid"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""


def test_a_refused_start_leaves_nothing(tmp_path: Path):
    with pytest.raises(UserError, match="bad"), claimed(tmp_path / "runs" / "run"):
        raise UserError("bad")
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "runs" / "run"):
        pass
    assert (tmp_path / "runs" / "run" / LOCK).exists()


def test_a_file_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"runs is not a directory"), claimed(tmp_path / "runs" / "run"):
        pass
