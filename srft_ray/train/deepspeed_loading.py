"""Loading a model under ZeRO 3, so that no rank ever holds more than its share and one whole parameter.

The model is built without data. Then rank 0 reads one parameter after the other, and DeepSpeed sends it to
all ranks, each of which keeps its share. Buffers that the files hold are read by every rank.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LearnerSection
from srft_ray.models import is_local, load_model, load_model_config, prepared_for_training
from srft_ray.train.deepspeed_config import reference_config

logger = logging.getLogger(__name__)


def load_for_learner(
    section: ModelSection,
    learner: LearnerSection,
    dtype: torch.dtype,
    path: str | None = None,
) -> Any:
    """The policy to train, or the model in `path`; under ZeRO 3 this rank's share of it.

    A model whose files name its weights otherwise than the model does, such as a mixture of experts with one
    tensor for each expert, is loaded whole; so is one whose files lack a buffer that they should hold.
    """
    if learner.zero_stage < 3:
        return load_model(section, dtype, bool(learner.activation_checkpointing), path)
    folder = _folder(path or section.path)
    model = _without_data(section, dtype, folder)
    buffers = _saved_buffers(model)
    names = {name for name, _ in model.named_parameters()} | buffers.keys()
    with ExitStack() as files:
        weights = _open(folder, files)
        strict = getattr(model, "_keep_in_fp32_modules_strict", None)
        if strict or not names <= weights.keys():
            logger.warning("the weights of %s have other names in its files: it is loaded whole", folder)
            return load_model(section, dtype, bool(learner.activation_checkpointing), path)
        _read(model, weights, reference_config(learner, dtype), dtype)
        # They are small, and whole on every rank, which reads them by itself.
        for name, buffer in buffers.items():
            buffer.copy_(weights[name].get_tensor(name))
    return prepared_for_training(model, bool(learner.activation_checkpointing))


def _folder(path: str) -> Path:
    """The model's directory; of a model on a hub that of the local copy, which may be made here."""
    if is_local(path):
        return Path(path).expanduser()
    return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.py"]))


def _without_data(section: ModelSection, dtype: torch.dtype, folder: Path) -> Any:
    """The model with parameters that have shapes only; buffers have the values of a new model."""
    trusted = section.trust_remote_code
    config = load_model_config(ModelSection(str(folder), max_length=2, trust_remote_code=trusted))
    with no_init_weights(), _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
        model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within it, a parameter loses its data as soon as its module has it."""
    register = nn.Module.register_parameter

    def register_shape(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_shape  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _open(folder: Path, files: ExitStack) -> dict[str, Any]:
    """The open file of each weight by the weight's name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = files.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those buffers, by name, that stand in the files of a model as its weights do; shared ones once."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _read(model: nn.Module, weights: dict[str, Any], config: dict[str, Any], dtype: torch.dtype) -> None:
    """Gives every parameter of the model its data, one at a time; a collective."""
    made: dict[int, nn.Parameter] = {}
    # Whole parameters come here one after the other: between the shares, which stay, their memory would not
    # be used again.
    largest = max(shape.nbytes for shape in model.parameters())
    memory_N = torch.empty(largest, dtype=torch.uint8)
    for module_name, module in model.named_modules():
        for name, shape in list(module._parameters.items()):
            if shape is None:
                continue
            # Tied weights are one parameter under several names.
            if id(shape) not in made:
                full_name = f"{module_name}.{name}" if module_name else name
                parameter = nn.Parameter(_data(shape, weights[full_name], full_name, memory_N))
                other = next(iter(made.values()), None)
                made[id(shape)] = _partitioned(parameter, other, config, dtype)
            module._parameters[name] = made[id(shape)]


def _data(shape: Tensor, file: Any, name: str, memory_N: Tensor) -> Tensor:
    """What rank 0 reads from the file, in `memory_N`; on other ranks something of the same size there."""
    data = memory_N[: shape.nbytes].view(shape.dtype).view(shape.shape)
    if dist.get_rank() == 0:
        data.copy_(file.get_tensor(name))
    return data


def _partitioned(
    parameter: nn.Parameter,
    other: nn.Parameter | None,
    config: dict[str, Any],
    dtype: torch.dtype,
) -> nn.Parameter:
    """The parameter with only this rank's share of the data that rank 0 has."""
    if other is None:
        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=config, dtype=dtype)
    else:
        other.convert_to_zero_parameters(param_list=[parameter])
    return parameter
