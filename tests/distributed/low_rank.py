"""Models with adapters of low rank: as the learners have them, and the same by PyTorch's parametrizations."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from srft_ray.config.training import LoraSection
from srft_ray.train.lora import PREFIX, Adapter


def with_adapter(model: nn.Module, lora: LoraSection) -> Adapter:
    """The model's adapter as after some updates: with B = 0 as at first, A would have no gradient."""
    adapter = Adapter(model, lora, seed=0)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, low_out in adapter.layers.values():
            low_out += 0.1 * torch.randn(low_out.shape, generator=noise).to(low_out.dtype)
    return adapter


class LowRank(nn.Module):
    """W + scale · B A."""

    def __init__(self, low_in: Tensor, low_out: Tensor, scale: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(low_in.double()), nn.Parameter(low_out.double())
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.lora_B @ self.lora_A


def parametrize(model: nn.Module, drawn: nn.Module, lora: LoraSection) -> None:
    """Freezes a float64 model and adds the numbers of the adapter that `drawn`, the same model, gets."""
    layers = with_adapter(drawn, lora).layers
    model.requires_grad_(False)
    for name, (low_in, low_out) in layers.items():
        added = LowRank(low_in.detach(), low_out.detach(), lora.alpha / lora.rank)
        register_parametrization(model.get_submodule(name), "weight", added)


def effective(model: nn.Module, name: str) -> Tensor:
    """A tensor of the model by its name in a plain one, with what is added to it."""
    module, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(module), leaf).detach()


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """A and B of each layer, named as in peft's files."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            layer = name.removesuffix(".parametrizations.weight.0")
            for matrix in ("lora_A", "lora_B"):
                found[f"{PREFIX}{layer}.{matrix}.weight"] = getattr(module, matrix).detach()
    return found
