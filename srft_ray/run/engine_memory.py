"""Memory of an engine on each of its GPUs, from shapes alone.

All figures are bytes; w is that of one weight.
"""

from dataclasses import dataclass

from srft_ray.config.rollout import RolloutSection
from srft_ray.rollout.engine_settings import cache_bytes
from srft_ray.run.memory import CUDA_CONTEXT, GIB, share
from srft_ray.run.model_shape import FLOAT32, ModelShape
from srft_ray.run.placement import Placement

BATCHED_TOKENS = 2048  # that vLLM computes in one step, unless rollout.engine.max_num_batched_tokens says so
# CUDA graphs of up to 51 numbers of sequences, and workspaces of kernels, of which FlashInfer's has 0.4 GiB.
# An allowance: it has not been measured.
GRAPHS_AND_WORKSPACES = 3 * GIB // 2
# Shares of a GPU's memory for an engine's weights and KV cache, unless the config has one.
MEMORY_ALONE = 0.85
MEMORY_BESIDE_LEARNERS = 0.4


@dataclass(frozen=True)
class EngineMemory:
    """Terms of an engine on each of its GPUs.

    The cache is what the others leave. Beside a learner vLLM is told its size (`cache_settings`) and takes
    the others in addition, so that they must not be too small: `runtime` is an allowance.

    Attributes:
        weights: with the adapter, if there is one; divided over the GPUs of the engine.
        step: of one step, what a layer holds of its tokens, and of all sequences the logits in w and in
            float32, their log-probs, probabilities, and the noise that samples. While weights are loaded, it
            is the largest tensor, the embeddings.
        runtime: of CUDA, CUDA graphs, and workspaces of kernels.
        cache: what is left for keys and values.
        sequences: of the longest length that the cache holds; None if the model's layers are unknown.
    """

    weights: int
    step: int
    runtime: int
    cache: int
    sequences: float | None

    @property
    def beside_cache(self) -> int:
        return self.weights + self.step + self.runtime

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        w: int,
        shards: int,
        max_num_seqs: int,
        max_length: int,
        memory: float,
        batched_tokens: int = BATCHED_TOKENS,
    ) -> "EngineMemory":
        """`memory`: what vLLM may use of each GPU (its gpu_memory_utilization times the GPU's)."""
        weights = share((shape.parameters + (shape.adapters or 0)) * w, shards)
        sampling = (w + 4 * FLOAT32) * max_num_seqs * shape.vocabulary
        step = max(batched_tokens * shape.layer_forward(w) + sampling, w * shape.vocabulary * shape.hidden)
        runtime = CUDA_CONTEXT + GRAPHS_AND_WORKSPACES
        cache = cache_bytes(memory, weights + step + runtime)
        of_token = shape.cache(w, shards)
        sequences = cache / (of_token * max_length) if of_token else None
        return cls(weights, step, runtime, cache, sequences)


def engine_memory_share(rollout: RolloutSection, placement: Placement) -> float:
    """The share of a GPU's memory that vLLM may use."""
    if rollout.gpu_memory_utilization is not None:
        return rollout.gpu_memory_utilization
    return MEMORY_BESIDE_LEARNERS if placement.colocated else MEMORY_ALONE
