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

    def add(self, sizes: Mapping[str, int]) -> str:
        """The name of the next file, which holds weights of these bytes by name."""
        self.pieces += 1
        name = f"model-{self.pieces:05d}.safetensors"
        self.files |= dict.fromkeys(sizes, name)
        self.total_bytes += sum(sizes.values())
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


def rounds(
    weights: Iterator[tuple[str, Tensor]], limit: int, rank: int, ranks: int
) -> Iterator[tuple[list[dict[str, int]], dict[str, Tensor]]]:
    """Deals pieces of about `limit` bytes to the ranks, one to each in a round; it goes through all weights.

    Nothing is yielded before each rank has its piece, so that all write at the same time.

    Yields:
        For each round the bytes of the weights of its pieces by name, and a copy of this rank's piece on the
        CPU, which is empty if the last round has none for it.
    """
    sizes: list[dict[str, int]] = [{}]
    own: dict[str, Tensor] = {}
    for name, tensor in weights:
        sizes[-1][name] = tensor.nbytes
        if len(sizes) == rank + 1:
            own[name] = tensor.detach().to("cpu", copy=True).contiguous()
        del tensor  # before the next one needs memory
        if sum(sizes[-1].values()) >= limit:
            sizes.append({})
        if len(sizes) > ranks:
            yield sizes[:-1], own
            sizes, own = [{}], {}
    last = [piece for piece in sizes if piece]
    if last:
        yield last, own


def save_rest(model: Any, tokenizer: Any, index: Index, folder: Path) -> None:
    """Everything but the weights: index, configuration, generation settings, tokenizer."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    index.save(folder)
