"""The model: looked at before a run, loaded by the learners, and the device and number format it runs in."""
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from srft_ray.config import Config
from srft_ray.errors import UserError


def resolve_device(config: Config) -> str:
    """cpu or cuda. Raises UserError if CUDA is asked for and absent."""
    if config.run.device == "auto":
        return "cuda" if _gpus() else "cpu"
    if config.run.device == "cuda" and not _gpus():
        raise UserError("run.device=cuda, but no CUDA GPU is visible here or in the Ray cluster: set run.device=cpu or use a machine that has one.")
    return config.run.device


def _gpus() -> bool:
    import ray
    return bool(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else torch.cuda.is_available()


def resolve_dtype(config: Config, device: str) -> str:
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bfloat16" if device == "cuda" else "float32"


def load_model_config(config: Config) -> Any:
    """The model's own configuration, checked against ours.

    Raises:
        UserError: the directory is missing or no model, or model.max_length is above what the model was made for.
    """
    path = Path(config.model.path).expanduser()
    looks_local = config.model.path.startswith((".", "/", "~")) or config.model.path.count("/") > 1 or path.exists()
    if looks_local and not path.is_dir():
        raise UserError(f"model.path {config.model.path} does not exist; pass a model directory (with config.json and safetensors).")
    if looks_local and not (path / "config.json").is_file():
        raise UserError(f"model.path {config.model.path} is no model directory: it has no config.json.")
    try:
        model = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    except Exception as error:
        raise UserError(f"model.path {config.model.path} cannot be read as a model: {str(error).splitlines()[0]}") from error
    if looks_local and not (any(path.glob("*.safetensors"))):
        raise UserError(f"model.path {config.model.path} has a config.json but no weights in safetensors format.")
    longest = getattr(model, "max_position_embeddings", None)
    if longest and config.model.max_length > longest:
        raise UserError(f"model.max_length={config.model.max_length} is above the {longest} positions of {config.model.path}: lower it.")
    return model


def load_model(config: Config, dtype: torch.dtype) -> Any:
    """The policy to train, in evaluation mode: dropout would make learner and engine different policies."""
    model = AutoModelForCausalLM.from_pretrained(
        config.model.path, dtype=dtype, trust_remote_code=config.model.trust_remote_code, use_safetensors=True)
    if config.learner.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    else:
        model.eval()
    return model
