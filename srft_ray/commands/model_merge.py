"""Merging of models, tensor by tensor, so that no model is ever whole in memory."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from srft_ray.errors import UserError, first_line, require
from srft_ray.sync.fingerprint import weight_files
from srft_ray.train.hf_files import Index

PIECE_BYTES = 2**30  # about the size of one file of the merged model
BLOCK = 2**22  # numbers that are merged at a time

# (numbers of the base (N,), those of the models (K, N), random generator) -> merged numbers (N,)
Method = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Merged:
    """What came of a merge.

    Attributes:
        folder: the model directory.
        numbers: how many numbers it has.
        changed: how many of them differ from the base's.
    """

    folder: Path
    numbers: int
    changed: int

    @property
    def share(self) -> float:
        return self.changed / max(1, self.numbers)


@dataclass(frozen=True)
class Weights:
    """The tensors of a model directory by name, read when they are asked for."""

    folder: Path
    files: dict[str, Path]

    @classmethod
    def of(cls, folder: Path) -> "Weights":
        """Raises UserError if the folder holds no model in safetensors format."""
        require((folder / "config.json").is_file(), f"{folder} is no model directory: it has no config.json.")
        found = weight_files(folder)
        require(bool(found), f"{folder} has no weights in safetensors format.")
        files = {}
        for file in found:
            try:
                with safe_open(file, framework="pt") as opened:
                    files |= dict.fromkeys(opened.keys(), file)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} cannot be read as safetensors: {first_line(error)}.") from error
        return cls(folder, files)

    def tensor(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as opened:
            return opened.get_tensor(name)


def mean(base_N: Tensor, models_KN: Tensor, rng: torch.Generator) -> Tensor:
    """The mean of the models, computed in float64."""
    return models_KN.double().mean(0).to(base_N.dtype)


def select(base_N: Tensor, models_KN: Tensor, rng: torch.Generator) -> Tensor:
    """Selective parameter merging (arXiv 2410.03743): each number is that of one model.

    The paper draws one of the K models uniformly, and draws again among those that changed the number if the
    one drawn has the base's. Together this is a uniform draw among those that changed it, as it is made here;
    if none has, it stays the base's.
    """
    changed_KN = models_KN != base_N
    count_N = changed_KN.sum(0)
    # A multiple of every count, so that the remainder is uniform.
    every = math.lcm(*range(1, len(models_KN) + 1))
    drawn_N = torch.randint(every, base_N.shape, generator=rng)
    wanted_N = drawn_N % count_N.clamp(min=1)
    place_KN = changed_KN.cumsum(0) - 1
    chosen_KN = changed_KN & (place_KN == wanted_N)
    chosen_N = chosen_KN.int().argmax(0)
    merged_N = models_KN.gather(0, chosen_N[None])[0]
    return torch.where(count_N > 0, merged_N, base_N)


METHODS: dict[str, Method] = {"mean": mean, "select": select}


def merge(base: Path, models: Sequence[Path], target: Path, method: str, seed: int) -> Merged:
    """Writes the merged model to `target/hf`, and how it was made to `target/merge.json`.

    Args:
        base: model directory that all were trained from; configuration and tokenizer are taken from it.
        method: a name in METHODS.
        seed: the draws of a tensor are seeded by it and the tensor's name.

    Raises:
        UserError: the models do not fit each other, hold a number that is not finite, or `target` holds a
            model.
    """
    require(len(models) >= 2, f"Merging needs at least two models, not {len(models)}.")
    folder = target / "hf"
    require(not folder.exists(), f"{folder} exists: choose another --output.")
    source, others = Weights.of(base), [Weights.of(model) for model in models]
    for other in others:
        _check_names(source, other)
    part = target / "hf.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        done = _write(source, others, part, METHODS[method], seed)
        record = {
            "method": method,
            "seed": seed,
            "base": str(base),
            "models": [str(model) for model in models],
        }
        (target / "merge.json").write_text(json.dumps({**record, "changed": done.share}, indent=1))
    except BaseException:
        shutil.rmtree(part)
        raise
    # The model appears whole or not at all.
    part.replace(folder)
    return Merged(folder, done.numbers, done.changed)


def _check_names(base: Weights, other: Weights) -> None:
    for one, two in ((base, other), (other, base)):
        missing = sorted(one.files.keys() - two.files.keys())
        require(
            not missing,
            f"{two.folder} does not have the tensor {missing[0] if missing else ''} of {one.folder}: merge "
            "models that were trained from the base.",
        )


def _save(piece: dict[str, Tensor], folder: Path, index: Index) -> None:
    name = index.add({name: tensor.nbytes for name, tensor in piece.items()})
    save_file(piece, folder / name, {"format": "pt"})


def _write(base: Weights, models: Sequence[Weights], folder: Path, method: Method, seed: int) -> Merged:
    index = Index()
    numbers = changed = 0
    piece: dict[str, Tensor] = {}
    for name in sorted(base.files):
        before = base.tensor(name)
        piece[name] = _merged(name, before, models, method, seed)
        numbers += before.numel()
        changed += int((piece[name] != before).sum())
        if sum(tensor.nbytes for tensor in piece.values()) >= PIECE_BYTES:
            _save(piece, folder, index)
            piece = {}
    if piece:
        _save(piece, folder, index)
    index.save(folder)
    for file in _other_files(base.folder):
        shutil.copy2(file, folder / file.name)
    return Merged(folder, numbers, changed)


def _merged(name: str, before: Tensor, models: Sequence[Weights], method: Method, seed: int) -> Tensor:
    found = [_fitting(name, before, model) for model in models]
    if not before.is_floating_point():
        return before  # such as the positions of a buffer, which no training changes
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    after = torch.empty_like(before)
    for begin in range(0, before.numel(), BLOCK):
        block = slice(begin, begin + BLOCK)
        models_KN = torch.stack([tensor.reshape(-1)[block] for tensor in found])
        after.view(-1)[block] = method(before.reshape(-1)[block], models_KN, rng)
    return after


def _fitting(name: str, before: Tensor, model: Weights) -> Tensor:
    """The model's tensor, which must be like the base's."""
    tensor = model.tensor(name)
    require(
        tensor.shape == before.shape and tensor.dtype == before.dtype,
        f"{name} is {_kind(tensor)} in {model.folder} and {_kind(before)} in the base: merge models of one "
        "kind and number format.",
    )
    require(
        not tensor.is_floating_point() or bool(tensor.isfinite().all()),
        f"{name} of {model.folder} holds a number that is infinite or not a number: leave this model out.",
    )
    return tensor


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _other_files(folder: Path) -> Iterator[Path]:
    """Everything but weights: configuration, generation settings, tokenizer."""
    for file in sorted(folder.iterdir()):
        is_weights = file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
        if file.is_file() and not is_weights and not file.name.endswith(".index.json"):
            yield file
