"""All learners together write and read checkpoints.

`checkpoint` knows the storage, this file knows the ranks.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from srft_ray.config.training import TrainerSection
from srft_ray.observe.journal import record_event
from srft_ray.train import hf_files
from srft_ray.train.checkpoint import CheckpointFailed, CheckpointStore
from srft_ray.train.checkpoint_share import BackgroundShare, Entries, Share, attempt
from srft_ray.train.chunks import PIECE_BYTES, chunks, safetensors_parts
from srft_ray.train.deepspeed_engine import DeepSpeedEngine
from srft_ray.train.retention import Retention
from srft_ray.train.state_reader import STATE_PREFIX

WHOLE = 2**62  # more bytes than any model has


class Saver:
    """One rank's part in the checkpoints of a run. Every method is a collective."""

    def __init__(
        self,
        store: CheckpointStore,
        trainer: TrainerSection,
        engine: DeepSpeedEngine,
        model: Any,
        tokenizer: Any,
        more_files: Sequence[Callable[[], Mapping[str, bytes]]] = (),
    ) -> None:
        """`more_files` give what else this rank writes, by file name."""
        self.store = store
        self.trainer = trainer
        self.retention = Retention(store, trainer)
        self.engine = engine
        self.model = model
        self.tokenizer = tokenizer
        self.more_files = more_files
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.failures = 0  # in a row
        self.newest = 0  # step of the newest checkpoint

    def save(self, step: int, final: bool, about: dict[str, Any]) -> bool:
        """Writes the checkpoint of `step`, with `about` in its manifest.

        Returns:
            False if that failed and the run may go on without it.

        Raises:
            CheckpointFailed: too many failures in a row, the final checkpoint cannot be written, or a tensor
                is not finite.
        """
        share = Share()
        about = self.described(about)
        error = self.start(step, share) or self.commit(step, share, about)
        return self.account(step, error, final)

    def account(self, step: int, error: str | None, final: bool) -> bool:
        """Counts a success or failure of all ranks; returns and raises as `save`."""
        if error is None:
            self.failures = 0
            self.newest = step
            return True
        self.failures += 1
        self._on_first_rank(lambda: self.store.discard(step))
        allowed = self.trainer.max_checkpoint_failures
        address = self.store.address(step)
        problem = f"checkpoint of step {step} could not be written to {address} ({error})"
        if final or self.failures > allowed:
            raise CheckpointFailed(
                f"The {problem}: make room, and run the same command again; it continues from step "
                f"{self.newest}."
            )
        self._record(
            f"the {problem}; failure {self.failures} of {allowed} in a row that are allowed, the run goes on"
        )
        return False

    def load(self, step: int) -> None:
        """Takes up the training state of `step`, written by any number of learners at any ZeRO stage."""
        reader = self.store.tensors(step)
        self.engine.load(reader, reader.manifest["updates"])
        self.newest = step

    def finish(self, step: int, ended_by: Mapping[str, Any] | None = None) -> None:
        """Marks the checkpoint of the last step, which is there, as that of a finished run.

        Args:
            ended_by: `trainer.stopping_rule`, if early stopping ended the training.

        Raises:
            CheckpointFailed: the storage refused it.
        """

        def mark() -> None:
            ending = {"finished": True, "ended_by": ended_by}
            self.store.commit(step, {**self.store.manifest(step), **ending})

        error = self._on_first_rank(mark)
        if error:
            raise CheckpointFailed(
                f"The run is complete, but its checkpoint of step {step} could not be marked ({error}): "
                "make room, and run the same command again."
            )

    def described(self, about: dict[str, Any]) -> dict[str, Any]:
        """With what a manifest says of the training state as it is now."""
        now = {"updates": self.engine.updates, "learners": self.world_size}
        return {**about, **now, "zero_stage": self.engine.zero_stage}

    def start(self, step: int, share: Share | BackgroundShare) -> str | None:
        """Writes this rank's files, or has them written; why that cannot begin, equal on all ranks."""
        # What an earlier attempt left goes first, so that the manifest names every file of the folder.
        error = self._on_first_rank(lambda: self.store.discard(step))
        if error is None:
            self._write_files(step, share)
        return error

    def commit(self, step: int, own: Share, about: dict[str, Any]) -> str | None:
        """Makes the shares of all ranks a checkpoint.

        Returns:
            Why it failed, equal on all ranks; None if the checkpoint is there.

        Raises:
            CheckpointFailed: a tensor is not finite; no retry would help.
        """
        # No marker before every rank has written all of its files.
        shares = [own] * self.world_size
        dist.all_gather_object(shares, own)
        files: Entries = {}
        for share in shares:
            if share.nonfinite:
                self._on_first_rank(lambda: self.store.discard(step))
                raise CheckpointFailed(
                    f"No checkpoint of step {step} was written, because {share.nonfinite} holds a number "
                    f"that is infinite or not a number. The checkpoint of step {self.newest} is the newest."
                )
            files |= share.entries
        error = next((share.error for share in shares if share.error), None)
        if error:
            return error
        error = self._on_first_rank(lambda: self.store.commit(step, {**about, "files": files}))
        if error:
            return error
        # Older checkpoints go when the new one is there; if they cannot be removed, the new one is valid.
        left = self._on_first_rank(self.retention.prune)
        if left:
            self._record(f"old checkpoints could not be removed ({left})")
        return None

    def _write_files(self, step: int, share: Share | BackgroundShare) -> None:
        """Writes this rank's share of the state and of the model; a small model is written by rank 0.

        Gathering a tensor is a collective: every rank goes through all tensors, also after a write of its own
        has failed, so that no other rank waits for it for ever.
        """
        for files in self.more_files:
            for name, content in files().items():
                share.add({}, partial(self._write_file, step, name, content))
        state = self.engine.state()  # each tensor is in memory of its own already
        pieces = chunks(state, PIECE_BYTES, lambda n: n % self.world_size == self.rank, copy=False)
        numbers = count()
        for piece in pieces:
            name = f"{STATE_PREFIX}{self.rank:05d}-{next(numbers):05d}.safetensors"
            share.add(piece, partial(self._write_tensors, step, name, piece))
            del piece  # before the next one needs memory
        if hf_files.weights_bytes(self.model) <= PIECE_BYTES:
            for weights in chunks(self.engine.weights(), WHOLE, lambda n: self.rank == 0, copy=True):
                share.add(weights, partial(self._write_hf, step, weights))
        else:
            self._write_hf_pieces(step, share)

    def _write_hf_pieces(self, step: int, share: Share | BackgroundShare) -> None:
        """Writes a large model in pieces, each rank an equal part of them, so that none holds all of it."""
        named = hf_files.without_tied(self.model, self.engine.weights())
        index = hf_files.Index()
        for sizes, own in hf_files.rounds(named, PIECE_BYTES, self.rank, self.world_size):
            names = [index.add(piece) for piece in sizes]
            if own:
                name = f"hf/{names[self.rank]}"
                share.add(own, partial(self._write_tensors, step, name, own, {"format": "pt"}))
            del own
        if self.rank == 0:
            share.add({}, partial(self._write_hf_rest, step, index))

    def _write_hf_rest(self, step: int, index: hf_files.Index) -> Entries:
        with tempfile.TemporaryDirectory() as folder:
            hf_files.save_rest(self.model, self.tokenizer, index, Path(folder))
            return self._write_folder(step, Path(folder))

    def _write_tensors(
        self, step: int, name: str, piece: Mapping[str, Tensor], metadata: dict[str, str] | None = None
    ) -> Entries:
        return self._write_file(step, name, *safetensors_parts(piece, metadata or {}))

    def _write_file(self, step: int, name: str, *parts: bytes | memoryview) -> Entries:
        return {name: self.store.write(step, name, *parts)}

    def _write_hf(self, step: int, weights: Mapping[str, Tensor]) -> Entries:
        """Writes the model as safetensors with its tokenizer, as transformers and vLLM load it."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder, state_dict=dict(weights))
            self.tokenizer.save_pretrained(folder)
            return self._write_folder(step, Path(folder))

    def _write_folder(self, step: int, folder: Path) -> Entries:
        return {
            f"hf/{file.name}": self.store.write(step, f"hf/{file.name}", file.read_bytes())
            for file in sorted(folder.iterdir())
        }

    def _on_first_rank(self, action: Callable[[], object]) -> str | None:
        """Rank 0 acts; all ranks learn why it failed, or None."""
        outcome = [attempt(action) if self.rank == 0 else None]
        dist.broadcast_object_list(outcome, src=0)
        return outcome[0]

    def _record(self, message: str) -> None:
        if self.rank == 0:
            record_event(self.store.run_dir, "checkpoint", message)
