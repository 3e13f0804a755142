"""Checkpoints of a run on any storage.

`step-N/` holds the training state by parameter, which fits any number of learners and any ZeRO stage, and
`hf/`, which transformers and vLLM load. The marker `complete.json` is written last and names every file with
its size and checksum.
A folder without it is no checkpoint: a crash at any moment leaves the checkpoint before it as it was.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from srft_ray.config.training import TrainerSection
from srft_ray.errors import require
from srft_ray.observe.journal import record_event
from srft_ray.train.state_reader import StateReader

COMPLETE = "complete.json"
DAMAGED = "damaged.json"  # the marker of a damaged checkpoint; its files stay until the step is written again
FORMAT = 1
READ_BYTES = 2**24
READERS = 8  # threads that read files to check them


class Damaged(Exception):
    """A checkpoint has its marker, but its files are not what was written."""


class CheckpointFailed(RuntimeError):
    """Checkpoints could not be written, more often than trainer.max_checkpoint_failures allows."""


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run on any storage that pyarrow knows. Steps are optimizer steps done.

    Attributes:
        files: the storage.
        root: folder of the run's checkpoints on it.
        run_dir: where events are recorded.
        scheme: what stands before `root` in an address, such as `s3://`; empty for local files.
    """

    files: fs.FileSystem
    root: str
    run_dir: Path
    scheme: str = ""

    @classmethod
    def of(cls, run_dir: Path, run_name: str, given: str | None) -> "CheckpointStore":
        """The store of a run.

        Args:
            given: trainer.checkpoint_path, the storage of several runs; None for the run directory.

        Raises:
            UserError: the storage cannot be reached.
        """
        if given is None:
            return cls(fs.LocalFileSystem(), str(run_dir.absolute() / "checkpoints"), run_dir)
        if "://" not in given:
            folder = Path(given).expanduser().absolute() / run_name
            return cls(fs.LocalFileSystem(), str(folder), run_dir)
        _refuse_password(given)
        try:
            files, path = fs.FileSystem.from_uri(given)
            files.get_file_info(path)
        except Exception as error:
            require(False, f"trainer.checkpoint_path={given} cannot be reached: {str(error).splitlines()[0]}")
        scheme = given.partition("://")[0]
        prefix = "" if scheme == "file" else f"{scheme}://"
        return cls(files, f"{path.rstrip('/')}/{run_name}", run_dir, prefix)

    def path(self, step: int, *parts: str) -> str:
        """Of a file of the checkpoint of `step`, for `files`."""
        return "/".join((self.root, f"step-{step}", *parts))

    def address(self, step: int, *parts: str) -> str:
        """As `path`, with the scheme, for readers and other libraries."""
        return self.scheme + self.path(step, *parts)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in order."""
        return [step for step, complete in self._folders(COMPLETE).items() if complete]

    def damaged_steps(self) -> list[int]:
        """Steps whose checkpoint was found damaged and put aside."""
        return [step for step, damaged in self._folders(DAMAGED).items() if damaged]

    def _folders(self, marker: str) -> dict[int, bool]:
        """Steps that have a folder, in order, and whether the marker is in it."""
        selector = fs.FileSelector(self.root, recursive=False, allow_not_found=True)
        steps = sorted(
            int(entry.base_name.removeprefix("step-"))
            for entry in self.files.get_file_info(selector)
            if entry.type == fs.FileType.Directory and re.fullmatch(r"step-\d+", entry.base_name)
        )
        markers = self.files.get_file_info([self.path(step, marker) for step in steps])
        return {step: found.type == fs.FileType.File for step, found in zip(steps, markers, strict=True)}

    def latest(self) -> int:
        """The newest complete checkpoint; 0 without one."""
        return max(self.steps(), default=0)

    def finished(self, trainer: TrainerSection) -> bool:
        """Whether the run is complete, with its last evaluation: to its last step, or as far as its patience
        let it go."""
        latest = self.latest()
        # A damaged checkpoint is none: the learners go on from the one before it.
        with suppress(Damaged):
            manifest = self.manifest(latest) if latest else {}
            if manifest.get("finished"):
                rule = trainer.stopping_rule
                return latest == trainer.steps or (rule is not None and manifest.get("ended_by") == rule)
        return False

    def newest_whole(self) -> int:
        """The newest checkpoint that is not damaged; 0 without one.

        A damaged one is reported and no longer counts.
        """
        for step in reversed(self.steps()):
            try:
                self.check(step)
                return step
            except Damaged as damage:
                message = f"the checkpoint of step {step} is damaged ({damage}): the one before it is used"
                record_event(self.run_dir, "checkpoint", message)
                self.files.move(self.path(step, COMPLETE), self.path(step, DAMAGED))
        return 0

    def check(self, step: int) -> None:
        """Compares every file with the size and checksum that it was written with.

        Raises:
            Damaged: naming the first file that differs.
        """
        files = self.manifest(step)["files"]
        # Sizes are known without reading, so they are compared first.
        for name, expected in files.items():
            info = self.files.get_file_info(self.path(step, name))
            if info.type != fs.FileType.File or info.size != expected["bytes"]:
                raise Damaged(f"{name} has {info.size or 0} of {expected['bytes']} bytes")
        with ThreadPoolExecutor(READERS) as readers:
            checksums = readers.map(lambda name: self._checksum(step, name), files)
            for name, checksum in zip(files, checksums, strict=True):
                if checksum != files[name]["crc32"]:
                    raise Damaged(f"the content of {name} has changed")

    def _checksum(self, step: int, name: str) -> int:
        checksum = 0
        with self.files.open_input_file(self.path(step, name)) as file:
            while piece := file.read(READ_BYTES):
                checksum = zlib.crc32(piece, checksum)
        return checksum

    def manifest(self, step: int) -> dict[str, Any]:
        """What `commit` recorded.

        Raises:
            Damaged: the marker cannot be read.
        """
        with self.files.open_input_file(self.path(step, COMPLETE)) as file:
            content = file.read()
        try:
            manifest = json.loads(content)
            if manifest["format"] != FORMAT or manifest["step"] != step:
                raise ValueError
            return manifest
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{COMPLETE} cannot be read") from None

    def write(self, step: int, name: str, *parts: bytes | memoryview) -> dict[str, Any]:
        """Writes one file, whose content is given in parts; returns its entry for the manifest."""
        path = self.path(step, name)
        self.files.create_dir(path.rpartition("/")[0], recursive=True)
        size = checksum = 0
        with self.files.open_output_stream(path) as file:
            for part in parts:
                file.write(part)
                size += len(part)
                checksum = zlib.crc32(part, checksum)
        return {"bytes": size, "crc32": checksum}

    def commit(self, step: int, manifest: Mapping[str, Any]) -> None:
        """Makes the files written for `step` a checkpoint."""
        content = json.dumps({"format": FORMAT, "step": step, **manifest}, indent=1)
        part = self.path(step, f"{COMPLETE}.part")
        with self.files.open_output_stream(part) as file:
            file.write(content.encode())
        # A disk may write in another order than we do: every file is on it before the marker appears.
        if isinstance(self.files, fs.LocalFileSystem):
            for name in manifest["files"]:
                _flush_to_disk(self.path(step, name))
            _flush_to_disk(part)
        # The marker appears whole or not at all, because a move is one operation of the storage.
        self.files.move(part, self.path(step, COMPLETE))

    def discard(self, step: int) -> None:
        """Removes a checkpoint; no error if there is none."""
        # The marker goes first: a crash in between leaves a folder that is no checkpoint, not a checkpoint
        # without files.
        with suppress(FileNotFoundError):
            self.files.delete_file(self.path(step, COMPLETE))
        with suppress(FileNotFoundError):
            self.files.delete_dir(self.path(step))

    def discard_after(self, step: int) -> None:
        """Removes checkpoints of later steps and incomplete ones.

        Damaged ones stay, so that they can be examined.
        """
        damaged = self._folders(DAMAGED)
        for found, complete in self._folders(COMPLETE).items():
            incomplete = not complete and not damaged.get(found, False)
            if incomplete or (complete and found > step):
                self.discard(found)

    def tensors(self, step: int) -> StateReader:
        """The training state of a checkpoint, read where it is asked for."""
        return StateReader(self.files, self.path(step), self.manifest(step))


def _refuse_password(uri: str) -> None:
    host = uri.partition("://")[2].partition("/")[0]
    user, at, _ = host.rpartition("@")
    require(
        not at or ":" not in user,
        "trainer.checkpoint_path holds a password, which would stand in logs and in the run's config.yaml: "
        "give it by the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )


def _flush_to_disk(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
