"""The model: looked at before a run, loaded by the learners, and the device and number format it runs in."""

from pathlib import Path
from typing import Any

import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from srft_ray.config.schema import Config, first_line, require
from srft_ray.errors import UserError


def resolve_device(config: Config) -> str:
    """cpu or cuda. Raises UserError if CUDA is asked for and absent."""
    if config.run.device == "cpu":
        return "cpu"
    there = ray.cluster_resources().get("GPU", 0) > 0 if ray.is_initialized() else torch.cuda.is_available()
    require(
        there or config.run.device == "auto",
        "run.device=cuda, but no CUDA GPU is visible here or in the Ray cluster: set run.device=cpu or use a machine that has one.",
    )
    return "cuda" if there else "cpu"


def resolve_dtype(config: Config, device: str) -> str:
    return (
        config.model.dtype if config.model.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    )


def load_model_config(config: Config, key: str = "model.path") -> Any:
    """The model's own configuration. UserError: the directory is missing or no model, or model.max_length is more than it was made for."""
    name, path, local = config.model.path, Path(config.model.path).expanduser(), is_local(config.model.path)
    require(
        not local or path.is_dir(),
        f"{key} {name} does not exist; pass a model directory (with config.json and safetensors).",
    )
    require(
        not local or (path / "config.json").is_file(),
        f"{key} {name} is no model directory: it has no config.json.",
    )
    try:
        model = AutoConfig.from_pretrained(name, trust_remote_code=config.model.trust_remote_code)
    except Exception as error:
        raise UserError(f"{key} {name} cannot be read as a model: {first_line(error)}.") from error
    require(
        not local or any(path.glob("*.safetensors")),
        f"{key} {name} has a config.json but no weights in safetensors format.",
    )
    longest = getattr(model, "max_position_embeddings", None) or config.model.max_length
    require(
        config.model.max_length <= longest,
        f"model.max_length={config.model.max_length} is above the {longest} positions of {name}: lower it.",
    )
    return model


def count_parameters(config: Config) -> int:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_model_config(config)).num_parameters()


def is_local(path: str) -> bool:
    """Whether a model path is a directory, there or not, and no hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).expanduser().exists()


def load_model(config: Config, dtype: torch.dtype, path: str | None = None) -> Any:
    """The policy to train (or the model in `path`), in evaluation mode: dropout would make learner and engine different policies."""
    trust = config.model.trust_remote_code
    model = AutoModelForCausalLM.from_pretrained(
        path or config.model.path, dtype=dtype, trust_remote_code=trust, use_safetensors=True
    )
    if config.learner.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(config.learner.activation_checkpointing)
