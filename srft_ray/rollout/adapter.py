"""The adapter of an engine (LoRA): the files that vLLM loads it from, made of what the learners published."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file

from srft_ray.config.training import LoraSection


@contextmanager
def adapter_folder(published: Path, lora: LoraSection) -> Iterator[str]:
    """A folder, for the length of the context, with the adapter as vLLM loads it: one file, and what it is.

    Args:
        published: folder of safetensors files; the other folder is in it.
    """
    tensors = {}
    for file in sorted(published.glob("*.safetensors")):
        tensors |= load_file(file)
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha, "target_modules": targets}
    with tempfile.TemporaryDirectory(dir=published) as folder:
        save_file(tensors, Path(folder) / "adapter_model.safetensors")
        (Path(folder) / "adapter_config.json").write_text(json.dumps(config))
        yield folder
