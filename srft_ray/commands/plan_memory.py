"""What `srft-ray plan` says of memory: the terms of `run/memory`, and what they leave."""

from srft_ray.config.resolve import Resolved
from srft_ray.run.engine_memory import engine_memory_share
from srft_ray.run.memory import GIB, LearnerMemory
from srft_ray.run.memory_check import engine_memory, largest_micro_batch, learner_memory
from srft_ray.run.model_shape import ModelShape
from srft_ray.run.placement import Placement

TERMS = {
    "weights": "weights",
    "master": "float32 weights",
    "moments": "moments",
    "gradients": "gradients",
    "reference": "reference model",
    "critic": "critic",
    "buckets": "buckets",
    "activations": "activations",
    "head": "head and logits",
}


def memory_lines(
    resolved: Resolved, placement: Placement, shape: ModelShape, device: float | None
) -> list[str]:
    """Lines of text; `device` as of `check_memory`."""
    learner = learner_memory(resolved, placement, shape)
    adapters = f" and {shape.adapters / 1e6:,.2f} M of adapters, which are trained" if shape.adapters else ""
    lines = [
        f"{shape.parameters / 1e6:,.1f} M parameters{adapters}; "
        f"each learner at least {_gib(learner.peak)} at its peak",
        _terms(learner, largest_micro_batch(resolved)),
    ]
    if shape.layers is None:
        lines.append("the model's layers are not known: activations and the engines' cache are not counted")
    if learner.host:
        lines.append(f"each learner {_gib(learner.host)} in CPU memory")
    if resolved.needs_engines:
        lines += _engine_lines(resolved, placement, shape, device)
    if placement.device == "cuda" and device:
        lines.append(_of_device(resolved, placement, learner, device))
    return [f"{'' if index else 'memory':14}{line}" for index, line in enumerate(lines)]


def _terms(learner: LearnerMemory, tokens: int) -> str:
    found = {words: getattr(learner, name) for name, words in TERMS.items()}
    said = ", ".join(f"{words} {number / GIB:.2f}" for words, number in found.items() if number)
    return f"of it {said} GiB, with micro-batches of {tokens:,} tokens"


def _engine_lines(
    resolved: Resolved, placement: Placement, shape: ModelShape, device: float | None
) -> list[str]:
    config = resolved.config
    engine = engine_memory(resolved, placement, shape, device or 0.0)
    if placement.device == "cpu":
        cache = config.rollout.kv_cache_gib
        return [f"each engine {_gib(engine.weights)} of weights, and {cache} GiB of cache"]
    own = engine.step + engine.runtime
    line = f"each engine {_gib(engine.weights)} of weights and {_gib(own)} of vLLM's own on a GPU"
    if not device:
        return [f"{line}, the rest is its cache: state hardware.gpu_memory_gib to see what it holds"]
    share = engine_memory_share(config.rollout, placement)
    line += f", and {_gib(engine.cache)} of cache within {share:g} of its memory"
    if engine.sequences is not None:
        line += f": {engine.sequences:,.0f} sequences of {config.model.max_length:,} tokens"
    return [line]


def _of_device(resolved: Resolved, placement: Placement, learner: LearnerMemory, device: float) -> str:
    share = engine_memory_share(resolved.config.rollout, placement)
    used = learner.peak + (share * device if placement.colocated else 0.0)
    who = "a learner and an engine" if placement.colocated else "a learner"
    return f"{who} on one GPU: {used / GIB:.1f} of {_gib(device)}"


def _gib(number: float) -> str:
    return f"{number / GIB:.2f} GiB"
