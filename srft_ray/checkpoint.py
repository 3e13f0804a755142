"""Checkpoints: `checkpoints/step-N/` holds the resumable state of every rank and `hf/`, which transformers and vLLM load."""
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

COMPLETE = "complete.json"


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step}"


def latest_step(run_dir: Path) -> int:
    """Optimizer steps done in the newest complete checkpoint; 0 without one."""
    done = [int(marker.parent.name.removeprefix("step-")) for marker in run_dir.glob(f"checkpoints/step-*/{COMPLETE}")]
    return max(done, default=0)


def mark_complete(run_dir: Path, step: int) -> None:
    (checkpoint_folder(run_dir, step) / COMPLETE).write_text(json.dumps({"step": step}))


def discard_after(run_dir: Path, step: int) -> None:
    """Removes what was written for steps that are not in the checkpoint, so that repeating them leaves each once."""
    for folder in run_dir.glob("checkpoints/step-*"):
        if int(folder.name.removeprefix("step-")) > step or not (folder / COMPLETE).exists():
            shutil.rmtree(folder)


def write_hf(model: Any, tokenizer: Any, weights: Iterator[tuple[str, "Tensor"]], folder: Path, sender: bool) -> None:
    """Writes the model as safetensors with its tokenizer. Every rank exhausts `weights`; the sender writes."""
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights if sender}
    if sender:
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
