"""Checkpoints: `step-N/` holds the training state by parameter, which fits any number of learners and any ZeRO stage, and
`hf/`, which transformers and vLLM load. `complete.json` is written last and names every file with its size and checksum:
without it there is no checkpoint, so that a crash at any moment leaves the previous one whole.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from srft_ray.config.training import TrainerSection
from srft_ray.errors import require
from srft_ray.observe.journal import read_json_lines, record_event

if TYPE_CHECKING:
    from torch import Tensor

COMPLETE = "complete.json"
DAMAGED = "damaged.json"  # what the marker of a damaged checkpoint becomes; its files stay until the step is written again
FORMAT = 1
READ_BYTES = 2**24
READERS = 8  # threads that read files to check them


class Damaged(Exception):
    """A checkpoint that is complete by its marker and is not what was written."""


class CheckpointFailed(RuntimeError):
    """Checkpoints could not be written, more often than trainer.max_checkpoint_failures allows."""


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run on any storage that pyarrow knows. Steps are optimizer steps done."""

    files: fs.FileSystem
    root: str
    run_dir: Path
    scheme: str = ""

    @classmethod
    def of(cls, run_dir: Path, run_name: str, given: str | None) -> "CheckpointStore":
        """The store of a run; `given` is trainer.checkpoint_path, the storage of several runs, or None for the run directory.

        Raises:
            UserError: it is no storage that can be reached.
        """
        if given is None:
            return cls(fs.LocalFileSystem(), str(run_dir.absolute() / "checkpoints"), run_dir)
        if "://" not in given:
            return cls(
                fs.LocalFileSystem(),
                str(Path(given).expanduser().absolute() / run_name),
                run_dir,
            )
        scheme, _, rest = given.partition("://")
        user, at, _ = rest.partition("/")[0].rpartition("@")
        require(
            not at or ":" not in user,
            "trainer.checkpoint_path holds a password, which would stand in logs and in the run's config.yaml: give "
            "it by the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
        try:
            files, path = fs.FileSystem.from_uri(given)
            files.get_file_info(path)
        except Exception as error:
            require(False, f"trainer.checkpoint_path={given} cannot be reached: {str(error).splitlines()[0]}")
        return cls(
            files,
            f"{path.rstrip('/')}/{run_name}",
            run_dir,
            "" if scheme == "file" else f"{scheme}://",
        )

    def path(self, step: int, *parts: str) -> str:
        return "/".join((self.root, f"step-{step}", *parts))

    def address(self, step: int, *parts: str) -> str:
        """As `path`, for others than `files`."""
        return self.scheme + self.path(step, *parts)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in order."""
        return self._with_marker(COMPLETE, wanted=True)

    def _with_marker(self, marker: str, wanted: bool) -> list[int]:
        found = self.files.get_file_info(fs.FileSelector(self.root, recursive=False, allow_not_found=True))
        folders = [
            entry.base_name
            for entry in found
            if entry.type == fs.FileType.Directory and entry.base_name.startswith("step-")
        ]
        markers = self.files.get_file_info([f"{self.root}/{name}/{marker}" for name in folders])
        return sorted(
            int(name.removeprefix("step-"))
            for name, found in zip(folders, markers, strict=True)
            if (found.type == fs.FileType.File) == wanted
        )

    def latest(self) -> int:
        """The newest complete checkpoint; 0 without one."""
        return max(self.steps(), default=0)

    def finished(self, steps: int) -> bool:
        """Whether the run of so many steps is complete, with its last evaluation."""
        with suppress(Damaged):  # then it is no checkpoint either, and the learners go on from the one before
            return self.latest() == steps and self.manifest(steps).get("finished", False)
        return False

    def newest_whole(self) -> int:
        """The newest checkpoint that is what was written; 0 without one. A damaged one is reported and put aside."""
        for step in reversed(self.steps()):
            try:
                self.check(step)
                return step
            except Damaged as damage:
                record_event(
                    self.run_dir,
                    "checkpoint",
                    f"the checkpoint of step {step} is damaged ({damage}): the one before it is used",
                )
                self.files.move(self.path(step, COMPLETE), self.path(step, DAMAGED))
        return 0

    def check(self, step: int) -> None:
        """Raises Damaged unless every file has the size and checksum that it was written with."""
        files = self.manifest(step)["files"]
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
        """What `commit` recorded. Raises Damaged if it cannot be read as that."""
        with self.files.open_input_file(self.path(step, COMPLETE)) as file:
            content = file.read()
        try:
            manifest = json.loads(content)
            if manifest["format"] != FORMAT or manifest["step"] != step:
                raise ValueError
            return manifest
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{COMPLETE} cannot be read") from None

    def write(self, step: int, name: str, content: bytes) -> dict[str, Any]:
        """Writes one file; returns its entry for the manifest."""
        path = self.path(step, name)
        self.files.create_dir(path.rpartition("/")[0], recursive=True)
        with self.files.open_output_stream(path) as file:
            file.write(content)
        return {"bytes": len(content), "crc32": zlib.crc32(content)}

    def commit(self, step: int, manifest: Mapping[str, Any]) -> None:
        """Makes the files written for `step` a checkpoint, in one move of the marker."""
        part = self.path(step, f"{COMPLETE}.part")
        with self.files.open_output_stream(part) as file:
            file.write(json.dumps({"format": FORMAT, "step": step, **manifest}, indent=1).encode())
        if isinstance(
            self.files, fs.LocalFileSystem
        ):  # the marker must not reach the disk before what it speaks of
            for path in (*(self.path(step, name) for name in manifest["files"]), part):
                _sync(path)
        self.files.move(part, self.path(step, COMPLETE))

    def discard(self, step: int) -> None:
        """Removes a checkpoint, its marker first; no error if there is none."""
        with suppress(FileNotFoundError):
            self.files.delete_file(self.path(step, COMPLETE))
        with suppress(FileNotFoundError):
            self.files.delete_dir(self.path(step))

    def discard_after(self, step: int) -> None:
        """Removes what was written for later steps, and what is incomplete. What is damaged stays for whoever wants to look at it."""
        for found in self._with_marker(COMPLETE, wanted=True):
            if found > step:
                self.discard(found)
        for found in set(self._with_marker(COMPLETE, wanted=False)) & set(
            self._with_marker(DAMAGED, wanted=False)
        ):
            self.discard(found)

    def tensors(self, step: int) -> "StateReader":
        return StateReader(self, step, self.manifest(step))


class StateReader:
    """Tensors of a checkpoint by name, read one at a time by their place in the safetensors files."""

    def __init__(self, store: CheckpointStore, step: int, manifest: Mapping[str, Any]) -> None:
        self.store, self.step, self.manifest = store, step, manifest
        self._places = {
            name: place
            for file in manifest["files"]
            if file.startswith("state-")
            for name, place in self._header(file).items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> "Tensor":
        """A float32 tensor, flat."""
        import torch

        file, start, end = self._places[name]
        with self.store.files.open_input_file(self.store.path(self.step, file)) as opened:
            content = opened.read_at(end - start, start)
        return torch.frombuffer(bytearray(content), dtype=torch.float32)

    def _header(self, file: str) -> dict[str, tuple[str, int, int]]:
        """Of a safetensors file: eight bytes of length, then JSON with offsets from its end."""
        with self.store.files.open_input_file(self.store.path(self.step, file)) as opened:
            length = int.from_bytes(opened.read_at(8, 0), "little")
            header = json.loads(opened.read_at(length, 8))
        return {
            name: (file, 8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
            for name, entry in header.items()
            if name != "__metadata__"
        }


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_hf(
    store: CheckpointStore, step: int, model: Any, tokenizer: Any, weights: Mapping[str, "Tensor"]
) -> dict[str, Any]:
    """Writes the model as safetensors with its tokenizer; returns the entries of its files for the manifest."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=dict(weights))
        tokenizer.save_pretrained(folder)
        return {
            f"hf/{file.name}": store.write(step, f"hf/{file.name}", file.read_bytes())
            for file in sorted(Path(folder).iterdir())
        }


def prune(store: CheckpointStore, trainer: TrainerSection) -> None:
    """Keeps the newest, those of every m-th step, and the best, as the trainer section says; None and nothing set: all."""
    steps = store.steps()
    if trainer.keep_checkpoints is None:
        return
    kept = set(steps[-trainer.keep_checkpoints :])
    kept |= {step for step in steps if trainer.keep_every and step % trainer.keep_every == 0}
    scores = _scores(store.run_dir, trainer.keep_best, steps) if trainer.keep_best else {}
    kept |= {max(scores, key=lambda step: (scores[step], step))} if scores else set()
    for step in set(steps) - kept:
        store.discard(step)


def _scores(run_dir: Path, name: str, steps: Iterable[int]) -> dict[int, float]:
    """Of the checkpoints that have one: avg@k of an evaluation set after that step, or a metric of the step that led to it."""
    evaluations = {
        r["step"]: r["avg"] for r in read_json_lines(run_dir / "evaluations.jsonl") if r["set"] == name
    }
    metrics = {
        r["step"] + 1: r[name] for r in read_json_lines(run_dir / "metrics.jsonl") if r.get(name) is not None
    }
    found = evaluations or metrics
    return {step: found[step] for step in steps if step in found}
