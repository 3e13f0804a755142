"""The weights of a model on disk as learners would publish them: tied tensors under each of their names.

Where vLLM has a copy of a tied output matrix, an engine that is not given it by its name keeps the old one
without an error.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from srft_ray.config.schema import ModelSection
from srft_ray.models import load_model_config, shapes_only
from srft_ray.sync.fingerprint import model_tensors, weight_files

FLOATS = {"F32", "F16", "BF16"}  # an engine turns one into the other when it loads a tensor


def file_shapes(files: Sequence[Path]) -> dict[str, Any]:
    """Shape and kind of numbers of each tensor in the files."""
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                tensor = opened.get_slice(name)
                kind = tensor.get_dtype()
                found[name] = [tensor.get_shape(), "float" if kind in FLOATS else kind]
    return found


def has_all_weights(section: ModelSection, names: set[str]) -> bool:
    """Whether tensors of these names are all that the model consists of, as transformers names them."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(load_model_config(section)) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    tied = _tied_names(section)
    return names <= {name for same in tied for name in same} and all(names & set(same) for same in tied)


def published_tensors(section: ModelSection) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a model in a directory, one after another; `has_all_weights` must be true of it."""
    written = set(file_shapes(weight_files(Path(section.path).expanduser())))
    same_as = {name: same for same in _tied_names(section) for name in same}
    for name, tensor in model_tensors(section.path):
        yield name, tensor
        for other in same_as[name]:
            if other not in written:
                yield other, tensor


def _tied_names(section: ModelSection) -> list[list[str]]:
    """The names of each tensor of the model; several of one that is tied."""
    state = shapes_only(section).state_dict(keep_vars=True)
    found: dict[int, list[str]] = {}
    for name, tensor in state.items():
        found.setdefault(id(tensor), []).append(name)
    return list(found.values())
