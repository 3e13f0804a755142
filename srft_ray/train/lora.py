"""Adapters of low rank (LoRA, arXiv 2106.09685), which are trained while the model itself is frozen.

The weight W of a linear layer acts as W + alpha / rank · B A. At first B is zero, so that the policy is the
base model. The only file that imports peft.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LoraSection
from srft_ray.errors import require
from srft_ray.models import shapes_only

FOLDER = "adapter"  # of a checkpoint, as peft loads it
PREFIX = "base_model.model."  # of names in peft's files
BASE = ".base_layer."  # in the name of a frozen weight, between those of its layer and of the weight
MATRICES = ("lora_A", "lora_B")

Whole = Callable[[Tensor], Tensor]  # gives a tensor that may be partitioned; a collective then


class Adapter:
    """The adapters of one model, on one rank."""

    def __init__(self, model: Any, lora: LoraSection, seed: int, base: str = "") -> None:
        """Freezes the model and gives its layers adapters, the same on all ranks and at every start.

        Args:
            base: the model's path, which is recorded in peft's files.

        Raises:
            UserError: a target is no linear layer that can have an adapter.
        """
        from peft import LoraConfig, inject_adapter_in_model

        targets = target_names(model, lora.targets)
        self.config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=targets,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
        )
        # peft draws A on the CPU, in the order of the layers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(self.config, model)
        model.train(model.training)
        self.scale = lora.alpha / lora.rank
        adapted = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
        for module in adapted.values():
            module.register_forward_pre_hook(_separate_input)
        self.layers = {
            name: tuple(module.get_submodule(f"{matrix}.default").weight for matrix in MATRICES)
            for name, module in adapted.items()
        }

    def tensors(self, whole: Whole) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the adapters, named as in peft's files."""
        for layer, weights in self.layers.items():
            for matrix, weight in zip(MATRICES, weights, strict=True):
                yield f"{PREFIX}{layer}.{matrix}.weight", whole(weight)

    def merged(self, tensors: Iterable[tuple[str, Tensor]], whole: Whole) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the model with the names of the base model, and adapters added to their weights."""
        for name, tensor in tensors:
            layer, is_base, rest = name.partition(BASE)
            if is_base and rest == "weight":
                low_in, low_out = map(whole, self.layers[layer])
                yield f"{layer}.weight", self._added(tensor, low_in, low_out)
            elif not any(f".{matrix}." in name for matrix in MATRICES):
                yield name.replace(BASE, "."), tensor

    def _added(self, weight: Tensor, low_in: Tensor, low_out: Tensor) -> Tensor:
        """The weight of a layer with its adapter, rounded once."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        product = low_out.to(wide) @ low_in.to(wide)
        return torch.add(weight.to(wide), product, alpha=self.scale).to(weight.dtype)

    def files(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, bytes]:
        """The adapter as peft and vLLM load it, by file name."""
        with tempfile.TemporaryDirectory() as folder:
            self.config.save_pretrained(folder)
            found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        found["adapter_model.safetensors"] = to_safetensors(dict(tensors), {"format": "pt"})
        return {f"{FOLDER}/{name}": file for name, file in found.items()}


def _separate_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Lets the gradients of a layer's weight and of its adapter be added before those of other layers are.

    The hooks of ZeRO 3 do that anyway, and in bfloat16 another order rounds otherwise.
    """
    first, *rest = inputs
    return (first.view_as(first), *rest)


def target_names(model: Any, wanted: Sequence[str]) -> list[str]:
    """Names of the linear layers that get adapters: those that are wanted, or all but the head.

    Raises:
        UserError: one that is wanted is no linear layer, or is the head.
    """
    layers = _linear_layers(model)
    found = sorted({name.rpartition(".")[2] for name in layers})
    for name in wanted:
        require(
            name in found,
            f"learner.lora.targets has {name!r}, which is no linear layer of {type(model).__name__} that can "
            f"have an adapter: choose from {', '.join(found)}. Its head and its embeddings stay frozen.",
        )
    return sorted(set(wanted)) or found


def count_adapter_parameters(section: ModelSection, lora: LoraSection) -> int:
    """Numbers that are trained, from the model's configuration alone.

    Raises:
        UserError: a target is no linear layer that can have an adapter.
    """
    model = shapes_only(section)
    targets = target_names(model, lora.targets)
    layers = [layer for name, layer in _linear_layers(model).items() if name.rpartition(".")[2] in targets]
    return sum(lora.rank * (layer.in_features + layer.out_features) for layer in layers)


def _linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Those of the decoder, by name; the head is not among them."""
    decoder = model.get_decoder()
    return {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
