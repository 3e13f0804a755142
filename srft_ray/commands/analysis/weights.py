"""Where the weights changed: by kind of matrix and by layer, exactly and at the precision of bfloat16.

In bfloat16 most small updates vanish by rounding (arXiv 2511.08567), so that the share of unchanged weights
is given for both.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

LAYER = re.compile(r"\.layers?\.(\d+)\.")


def weight_changes(before: Path, after: Path) -> list[dict[str, Any]]:
    """One row for each kind of tensor and for each layer; sums over the tensors of both models' files."""
    sums: dict[str, dict[str, float]] = {}
    later = dict(_files_by_tensor(after))
    for name, file in _files_by_tensor(before):
        if name not in later:
            continue
        figures = _figures(_tensor(file, name), _tensor(later[name], name))
        for group in ("all", kind_of(name), layer_of(name)):
            total = sums.setdefault(group, dict.fromkeys(figures, 0.0))
            for key, value in figures.items():
                total[key] += value
    return [_row(group, total) for group, total in sorted(sums.items(), key=lambda item: _order(item[0]))]


def kind_of(name: str) -> str:
    """Such as `q_proj.weight`, or the whole name of a tensor outside the layers."""
    if LAYER.search(name) is None:
        return name
    return ".".join(name.split(".")[-2:])


def layer_of(name: str) -> str:
    found = LAYER.search(name)
    return "outside the layers" if found is None else f"layer {found[1]}"


def _order(group: str) -> tuple[int, int, str]:
    number = int(group.split()[1]) if group.startswith("layer ") else -1
    return (group != "all", number, group)


def _figures(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    old = before.float()
    new = after.float()
    rounded_equal = old.bfloat16() == new.bfloat16()
    return {
        "weights": float(old.numel()),
        "same": float((old == new).sum()),
        "same_bf16": float(rounded_equal.sum()),
        "old_square": float(old.double().square().sum()),
        "change_square": float((new - old).double().square().sum()),
    }


def _row(group: str, total: dict[str, float]) -> dict[str, Any]:
    relative = (total["change_square"] / max(total["old_square"], 1e-300)) ** 0.5
    return {
        "weights of": group,
        "weights": int(total["weights"]),
        "unchanged": total["same"] / total["weights"],
        "unchanged in bfloat16": total["same_bf16"] / total["weights"],
        "relative change": relative,
    }


def _files_by_tensor(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, file


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(str(file), framework="pt") as tensors:
        return tensors.get_tensor(name)
