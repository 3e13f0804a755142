"""Learners of a node write their shares into the same files, whose memory is used again when engines left."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync import collective, node_copy, staged_files
from srft_ray.sync import transport as transport_module
from srft_ray.sync.collective import CollectiveTransport
from srft_ray.sync.fingerprint import fingerprint, folder_fingerprint
from srft_ray.sync.pieces import Files, Piece, PieceBuffer, Rank, cut, write_files
from srft_ray.sync.staged_files import StagedFiles

WEIGHTS = {
    "large": torch.randn(300, 200),
    "turned": torch.randn(70, 50).T,
    "half": torch.randn(33).to(torch.bfloat16),
    "none": torch.zeros(0, 4),
}
RANKS = [Rank(0, 2), Rank(1, 2)]


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(node_copy, "SHARED_MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


def headers() -> dict[str, bytes]:
    files = Files()
    for _ in cut(WEIGHTS.items(), Rank(), PieceBuffer(100), files):
        pass
    return files.headers()


def pieces(rank: Rank) -> Iterator[Piece]:
    return cut(WEIGHTS.items(), rank, PieceBuffer(100), Files(), direct=True)


def stage(name: str, spares: list[StagedFiles] | None = None) -> list[StagedFiles]:
    """What both learners of a node have written."""
    staged = [StagedFiles(name, headers(), spare) for spare in spares or [None, None]]
    for files, rank in zip(staged, RANKS, strict=True):
        for piece in pieces(rank):
            files.write(piece)
        assert files.finish(headers()) == str(files.folder)
    return staged


def inodes(folder: Path) -> set[int]:
    return {file.stat().st_ino for file in folder.iterdir()}


def give(staged: StagedFiles, folder: Path) -> Path:
    """The files under a second name, as a listener gives it to them."""
    folder.mkdir()
    for file in staged.headers:
        os.link(staged.folder / file, folder / file)
    return folder


def test_the_shares_of_both_learners_are_the_files(memory: Path, tmp_path: Path):
    staged = stage("a")
    assert staged[0].folder == staged[1].folder
    copy = give(staged[0], tmp_path / "copy")
    for files in staged:
        assert list(memory.iterdir()), "the other learner still holds it"
        files.close()
    assert not list(memory.iterdir())
    assert folder_fingerprint(copy) == fingerprint(WEIGHTS.items())


def test_what_was_written_can_be_read_again(tmp_path: Path):
    staged = stage("a")
    limit = 50_000
    read = [Piece(piece.places, piece.data.copy()) for files in staged for piece in files.pieces(limit)]
    assert [piece.places for piece in read] == [places for files in staged for places in files.plan(limit)]
    assert sum(piece.nbytes for piece in read) == sum(tensor.nbytes for tensor in WEIGHTS.values())
    assert 2 < len(read) < len(staged) * len(WEIGHTS), "parts are put together, up to the limit"
    write_files(headers(), read, tmp_path)
    assert folder_fingerprint(tmp_path) == fingerprint(WEIGHTS.items())


def test_files_that_no_engine_has_any_more_are_written_again(memory: Path):
    staged = stage("a")
    before, old = inodes(staged[0].folder), staged[0].folder
    staged = stage("b", staged)
    assert inodes(staged[0].folder) == before and staged[0].folder == staged[1].folder
    assert not old.exists(), "a listener that is late finds nothing to give a name to"
    assert list(memory.iterdir()) == [staged[0].folder]


def test_files_that_an_engine_has_are_not_written(tmp_path: Path):
    staged = stage("a")
    copy = give(staged[0], tmp_path / "copy")
    expected = folder_fingerprint(copy)
    for tensor in WEIGHTS.values():
        tensor += 1
    staged = stage("b", staged)
    assert staged[0].folder == staged[1].folder
    assert not inodes(staged[0].folder) & inodes(copy)
    assert folder_fingerprint(copy) == expected != fingerprint(WEIGHTS.items())
    assert folder_fingerprint(give(staged[0], tmp_path / "next")) == fingerprint(WEIGHTS.items())


def test_learners_of_which_only_one_found_the_files_free_do_not_meet(tmp_path: Path):
    spares = stage("a")
    copy = give(spares[0], tmp_path / "copy")
    first = StagedFiles("b", headers(), spares[0])
    for file in copy.iterdir():
        file.unlink()
    second = StagedFiles("b", headers(), spares[1])
    assert first.folder != second.folder


def test_files_of_other_tensors_are_not_written_again():
    """Neither where others are expected, nor where others came than were expected."""
    [old, wrong] = stage("a")
    before = inodes(old.folder)
    kept = [file.open() for file in old.folder.iterdir()]  # or the system gives their numbers to new files
    others = {file: header + b" " * 8 for file, header in old.headers.items()}
    assert not inodes(StagedFiles("b", others, old).folder) & before
    assert not wrong.finish(others)
    assert not inodes(StagedFiles("c", headers(), wrong).folder) & before
    for file in kept:
        file.close()


@pytest.mark.parametrize("room", [0, 1, 4], ids=["nothing", "a header", "a part of the tensors"])
def test_what_has_no_room_goes_into_the_store(
    monkeypatch: pytest.MonkeyPatch, memory: Path, tmp_path: Path, room: int
):
    stored: list[Piece] = []

    def put(piece: Piece) -> Piece:
        stored.append(Piece(piece.places, np.array(piece.data)))
        return stored[-1]

    for module in (transport_module, collective):
        monkeypatch.setattr(module.ray, "put", put)
    transport = CollectiveTransport(None, RolloutSection(transport_backend="gloo"), 1)
    transport._agreed, transport._headers = "name", headers()
    writes = [staged_files.write_all] * room

    def write_while_there_is_room(*about: Any) -> None:
        if not writes:
            raise OSError("No space left on device")
        writes.pop()(*about)

    monkeypatch.setattr(staged_files, "write_all", write_while_there_is_room)
    share = transport._make_share(1, iter(WEIGHTS.items()), sender=True)
    assert share.pieces == stored and not writes
    write_files(share.headers, stored, tmp_path)
    assert folder_fingerprint(tmp_path) == fingerprint(WEIGHTS.items())
    assert not list(memory.iterdir())


def test_files_that_were_cut_are_an_error_and_no_endless_loop() -> None:
    staged, _ = stage("cut")
    for file in staged.folder.iterdir():
        os.truncate(file, 10)
    with pytest.raises(OSError, match="was cut while its learner still has it"):
        list(staged.pieces(100))
