"""The model: looked at before a run, loaded by the learners, and the number format that it runs in.

transformers is imported where it is used: most processes that handle a run's objects do not need it, and it
takes seconds.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import set_num_threads as set_threads_of_pytorch  # vLLM replaces it by nothing when it starts

from srft_ray.config.schema import ModelSection
from srft_ray.errors import UserError, first_line, require
from srft_ray.imports import large_imports


def resolve_dtype(section: ModelSection, device: str) -> str:
    """The name of the number format on the device, cpu or cuda."""
    if section.dtype != "auto":
        return section.dtype
    return "bfloat16" if device == "cuda" else "float32"


def engine_dtype(section: ModelSection, own: str, device: str) -> str:
    """The same for engines: their own (rollout.dtype), or the model's if that is `auto`."""
    return resolve_dtype(section, device) if own == "auto" else own


def set_threads(threads: int | None) -> None:
    """The number of threads that PyTorch computes with, for the thread that calls it.

    None: what OMP_NUM_THREADS says. Ray sets it in each actor; PyTorch, which reads it when it is imported,
    has been imported before where the process is a fork (`fork_server`).
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if threads or given.isdecimal():
        set_threads_of_pytorch(threads or int(given))


def is_local(path: str) -> bool:
    """Whether a model path names a directory, which may be missing, rather than a model on a hub."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).expanduser().exists()


def load_model_config(section: ModelSection, key: str = "model.path", needs_weights: bool = True) -> Any:
    """The model's own configuration.

    Args:
        key: the config key that named the model, for messages.
        needs_weights: whether a directory without weights is refused.

    Raises:
        UserError: the directory is missing or holds no model, or model.max_length is above the model's
            positions.
    """
    name = section.path
    path = Path(name).expanduser()
    local = is_local(name)
    require(
        not local or path.is_dir(),
        f"{key} {name} does not exist; pass a model directory (with config.json and safetensors).",
    )
    require(
        not local or (path / "config.json").is_file(),
        f"{key} {name} is no model directory: it has no config.json.",
    )
    with large_imports():
        from transformers import AutoConfig

    try:
        model = AutoConfig.from_pretrained(name, trust_remote_code=section.trust_remote_code)
    except Exception as error:
        where = "" if local else f" It is the id of a model on a hub, because there is no {path.absolute()}."
        raise UserError(f"{key} {name} cannot be read as a model: {first_line(error)}.{where}") from error
    require(
        not (local and needs_weights) or any(path.glob("*.safetensors")),
        f"{key} {name} has a config.json but no weights in safetensors format.",
    )
    longest = getattr(model, "max_position_embeddings", None) or section.max_length
    require(
        section.max_length <= longest,
        f"model.max_length={section.max_length} is above the {longest} positions of {name}: lower it, "
        "or make a copy with more (srft-ray extend).",
    )
    return model


def check_trainable(section: ModelSection) -> None:
    """Raises UserError for a number format that engines know and learners do not."""
    require(
        section.dtype != "float16",
        "model.dtype=float16 cannot be trained, because its gradients overflow: set bfloat16 or float32 "
        "(rollout.dtype, that of the engines, may be float16).",
    )


@dataclass(frozen=True)
class LogitForm:
    """What some models do with the logits of their head: cap * tanh(logits * scale / cap).

    Attributes:
        scale: Cohere's `logit_scale`, one divided by Granite's `logits_scaling`, Falcon-H1's
            `lm_head_multiplier`.
        cap: Gemma's `final_logit_softcapping`; None does not cap.
    """

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model_config: Any) -> "LogitForm":
        """Of a model, from its configuration."""
        config = model_config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        scale *= getattr(config, "lm_head_multiplier", None) or 1.0
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, raw: Tensor) -> Tensor:
        """The logits of the model from those of its head."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def backward(self, raw: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the head's logits, from that of the model's; `gradient` may be changed."""
        if self.cap is not None:
            tangent = torch.tanh(raw.to(gradient.dtype) * (self.scale / self.cap))
            gradient = gradient.mul_(1 - tangent**2)
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def shapes_only(section: ModelSection) -> Any:
    """The model without data, from its configuration alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_model_config(section, needs_weights=False))


def count_parameters(section: ModelSection) -> int:
    """Parameters of the model, from its configuration alone."""
    return shapes_only(section).num_parameters()


def load_model(
    section: ModelSection, dtype: torch.dtype, activation_checkpointing: bool, path: str | None = None
) -> Any:
    """The policy to train, or the model in `path`, whole in memory."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path or section.path, dtype=dtype, trust_remote_code=section.trust_remote_code, use_safetensors=True
    )
    return prepared_for_training(model, activation_checkpointing)


def prepared_for_training(model: Any, activation_checkpointing: bool) -> Any:
    """The model in evaluation mode: with dropout learner and engine would be different policies.

    transformers recomputes activations in training mode only, so with `activation_checkpointing` the mode is
    training; models that use dropout by default are not supported then.
    """
    if activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(activation_checkpointing)
