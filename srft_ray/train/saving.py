"""All learners together write and read checkpoints; `checkpoint` knows the storage, this knows the ranks."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save as to_safetensors

from srft_ray.config.training import TrainerSection
from srft_ray.observe.journal import record_event
from srft_ray.sync.transport import chunks
from srft_ray.train.checkpoint import CheckpointFailed, CheckpointStore, prune, write_hf
from srft_ray.train.deepspeed_engine import DeepSpeedEngine

PIECE_BYTES = 2**30


class Saver:
    """One rank's part in the checkpoints of a run. Every method is a collective."""

    def __init__(
        self,
        store: CheckpointStore,
        trainer: TrainerSection,
        engine: DeepSpeedEngine,
        model: Any,
        tokenizer: Any,
    ) -> None:
        self.store, self.trainer, self.engine, self.model, self.tokenizer = (
            store,
            trainer,
            engine,
            model,
            tokenizer,
        )
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.failures, self.newest = 0, 0

    def save(self, step: int, final: bool, about: dict[str, Any]) -> bool:
        """Writes the checkpoint of `step`, with `about` in its manifest; False if that failed and the run may go on without.

        Raises:
            CheckpointFailed: too many failures in a row, or the final checkpoint cannot be written.
        """
        error = self._together(lambda: self.store.discard(step)) or self._write(step, about)
        if error is None:
            self.failures, self.newest = 0, step
            return True
        self.failures += 1
        self._together(lambda: self.store.discard(step))
        message = (
            f"the checkpoint of step {step} could not be written to {self.store.address(step)} ({error})"
        )
        if final or self.failures > self.trainer.max_checkpoint_failures:
            raise CheckpointFailed(
                f"{message[0].upper()}{message[1:]}: make room, and run the same command again; it continues from step "
                f"{self.newest}."
            )
        if self.rank == 0:
            record_event(
                self.store.run_dir,
                "checkpoint",
                f"{message}; failure {self.failures} of {self.trainer.max_checkpoint_failures} "
                "in a row that are allowed, the run goes on",
            )
        return False

    def load(self, step: int) -> None:
        """Takes up the training state of `step`, written by any number of learners at any ZeRO stage."""
        reader, self.newest = self.store.tensors(step), step
        self.engine.load(reader, reader.manifest["updates"])

    def _write(self, step: int, about: dict[str, Any]) -> str | None:
        """Why it failed, equal on all ranks. A failed write does not end the loop: gathering tensors is a collective."""
        files, errors = {}, []
        for number, piece in enumerate(
            chunks(self.engine.state(), PIECE_BYTES, lambda n: n % self.world_size == self.rank)
        ):
            name = f"state-{self.rank:05d}-{number:05d}.safetensors"
            _attempt(
                lambda piece=piece, name=name: files.update(
                    {name: self.store.write(step, name, to_safetensors(piece))}
                ),
                errors,
            )
        for weights in chunks(self.engine.weights(), 2**62, lambda n: self.rank == 0):
            _attempt(
                lambda weights=weights: files.update(
                    write_hf(self.store, step, self.model, self.tokenizer, weights)
                ),
                errors,
            )
        shares: list[Any] = [None] * self.world_size
        dist.all_gather_object(shares, (files, errors))
        failed = [error for _, found in shares for error in found]
        if failed:
            return failed[0]
        every = {name: entry for found, _ in shares for name, entry in found.items()}
        manifest = {
            **about,
            "updates": self.engine.updates,
            "learners": self.world_size,
            "zero_stage": self.engine.zero_stage,
            "files": every,
        }
        error = self._together(lambda: self.store.commit(step, manifest))
        left = None if error else self._together(lambda: prune(self.store, self.trainer))
        if left and self.rank == 0:
            record_event(self.store.run_dir, "checkpoint", f"old checkpoints could not be removed ({left})")
        return error

    def finish(self, step: int) -> None:
        """Marks the checkpoint of the last step, which is there, as that of a finished run."""
        if error := self._together(
            lambda: self.store.commit(step, {**self.store.manifest(step), "finished": True})
        ):
            raise CheckpointFailed(
                f"The run is complete, but its checkpoint of step {step} could not be marked ({error}): make room, and run the "
                "same command again."
            )

    def _together(self, action: Callable[[], object]) -> str | None:
        """Rank 0 acts; all learn why it failed, or None."""
        errors: list[str] = []
        if self.rank == 0:
            _attempt(action, errors)
        outcome = [errors[0] if errors else None]
        dist.broadcast_object_list(outcome, src=0)
        return outcome[0]


def _attempt(action: Callable[[], object], errors: list[str]) -> None:
    """Only storage may fail here; anything else is a bug and propagates."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        errors.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
