"""The files of a model in pieces, as transformers and vLLM load them: safetensors, an index, and the rest."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class Index:
    """Which file holds which weight."""

    files: dict[str, str] = field(default_factory=dict)
    total_bytes: int = 0
    pieces: int = 0

    def add(self, piece: Mapping[str, Tensor]) -> str:
        """The name of the next file, which holds the piece."""
        self.pieces += 1
        name = f"model-{self.pieces:05d}.safetensors"
        self.files |= dict.fromkeys(piece, name)
        self.total_bytes += sum(tensor.nbytes for tensor in piece.values())
        return name

    def save(self, folder: Path) -> None:
        content = {"metadata": {"total_size": self.total_bytes}, "weight_map": self.files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1))


def weights_bytes(model: Any) -> int:
    """Of all weights, whole, wherever their parts are."""
    sizes = [getattr(p, "ds_numel", p.numel()) * p.element_size() for p in model.parameters()]
    return sum(sizes)


def without_tied(model: Any, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights under one name each, as transformers saves them; it goes through all of them."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    again = every - {name for name, _ in model.named_parameters()}
    for name, tensor in weights:
        if name not in again:
            yield name, tensor
        del tensor  # before the next one needs memory


def save_rest(model: Any, tokenizer: Any, index: Index, folder: Path) -> None:
    """Everything but the weights: index, configuration, generation settings, tokenizer."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    index.save(folder)
