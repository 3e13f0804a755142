"""Which models are evaluated by the same engines, one after another."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from srft_ray.commands.evaluation_sampling import ModelEvaluation
from srft_ray.commands.model_weights import file_shapes, has_all_weights
from srft_ray.models import is_local, load_model_config
from srft_ray.run.series import shared_settings
from srft_ray.sync.fingerprint import weight_files
from srft_ray.sync.node_copy import shared_memory

# Keys of a model's configuration that its engine does not depend on: its number format is given to it.
OF_A_FOLDER = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
COPIES = 3  # of weights that are replaced, at most: two in the object store, one that engines load


def series_of_models(models: Sequence[ModelEvaluation]) -> list[list[ModelEvaluation]]:
    """The models whose engines differ in nothing but the values of the weights; others are alone."""
    if len(models) == 1:
        return [[*models]]  # its files are not read for nothing
    found: dict[str, list[ModelEvaluation]] = {}
    for number, model in enumerate(models):
        found.setdefault(_shared(model) or f"alone {number}", []).append(model)
    return [part for series in found.values() for part in _streams(series)]


def _streams(series: Sequence[ModelEvaluation]) -> list[list[ModelEvaluation]]:
    """The models of each stream, which has no more blocks than that of a run, unless one model needs them."""
    streams: list[list[ModelEvaluation]] = [[]]
    blocks = 0
    for model in series:
        blocks += model.blocks
        if streams[-1] and blocks > model.plan.stream_blocks:
            streams.append([])
            blocks = model.blocks
        streams[-1].append(model)
    return streams


def _shared(model: ModelEvaluation) -> str:
    """Everything that the engines of the model are made from but the values of its weights, as text.

    Empty if it is not all known here, or if the weights cannot be published.
    """
    config = model.resolved.config
    section = config.model
    # Code of the model, and arguments of vLLM, may do anything with what is loaded.
    if not is_local(section.path) or section.trust_remote_code or config.rollout.engine:
        return ""
    folder = Path(section.path).expanduser()
    own = load_model_config(section).to_dict()
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if own.get("quantization_config") or tokenizer is None:
        return ""
    files = weight_files(folder)
    shapes = file_shapes(files)
    if not _are_publishable(files, folder) or not has_all_weights(section, set(shapes)):
        return ""
    without_path = replace(config, model=replace(section, path=""))
    settings = shared_settings(replace(model.resolved, config=without_path))
    if not settings:
        return ""
    return json.dumps(
        [
            settings,
            {key: value for key, value in own.items() if key not in OF_A_FOLDER},
            _generation_settings(folder),
            tokenizer.to_str(),
            type(model.tokenizer).__name__,
            model.tokenizer.special_tokens_map,
            model.tokenizer.clean_up_tokenization_spaces,
            shapes,
        ],
        sort_keys=True,
        default=repr,
    )


def _are_publishable(files: Sequence[Path], folder: Path) -> bool:
    """Whether an engine would load just these files of the folder, under the names of Hugging Face, and
    shared memory has room for copies of them."""
    of_mistral = any(file.name.startswith("consolidated") for file in files)
    if of_mistral or set(files) != set(folder.glob("*.safetensors")):
        return False
    size = sum(file.stat().st_size for file in files)
    return COPIES * size <= shutil.disk_usage(shared_memory()).free


def _generation_settings(folder: Path) -> dict[str, Any]:
    """Of the model; an engine takes from them at which tokens a response ends."""
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    return {key: value for key, value in settings.items() if key not in OF_A_FOLDER}
