"""The shape of a model, and what a token takes in memory: activations in a learner, its cache in an engine.

All figures are bytes; w is that of one number, 2 in bfloat16 and 4 in float32.
"""

from dataclasses import dataclass
from typing import Any

FLOAT32 = 4


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on.

    Attributes:
        layers: None if the model is no decoder of equal dense layers: activations are unknown then.
        queries, keys: width of the queries of all heads, and of the keys (and values) of all their heads.
        adapters: numbers that are trained in the place of the parameters (LoRA); None: there are none.
    """

    parameters: int
    vocabulary: int = 0
    hidden: int = 0
    layers: int | None = None
    intermediate: int = 0
    heads: int = 0
    queries: int = 0
    keys: int = 0
    adapters: int | None = None

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return self.parameters if self.adapters is None else self.adapters

    @classmethod
    def of(cls, model_config: Any, parameters: int) -> "ModelShape":
        """From the model's configuration (its config.json)."""
        text = model_config.get_text_config()
        vocabulary, hidden = text.vocab_size, text.hidden_size
        names = ("num_hidden_layers", "intermediate_size", "num_attention_heads")
        found = [getattr(text, name, None) for name in names]
        experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
        if experts or not all(isinstance(number, int) for number in found):
            return cls(parameters, vocabulary, hidden)
        layers, intermediate, heads = found
        width = getattr(text, "head_dim", None) or hidden // heads
        key_heads = getattr(text, "num_key_value_heads", None) or heads
        return cls(
            parameters, vocabulary, hidden, layers, intermediate, heads, heads * width, key_heads * width
        )

    def layer_activations(self, w: int) -> int:
        """What one layer keeps of a token for the backward pass.

        Read from the layers of transformers (Llama, Qwen2): a norm keeps its input in float32, the normalized
        one, and its result; attention (a fused kernel) its queries, keys, values, result and a float32 number
        of each head; a gated MLP the outputs of both linear layers, of the activation, and their product.
        """
        norms = 2 * self.hidden * (FLOAT32 + 2 * w)
        attention = 2 * w * (self.queries + self.keys) + FLOAT32 * self.heads
        return norms + attention + 4 * w * self.intermediate

    def layer_forward(self, w: int) -> int:
        """What one layer holds of a token where nothing is kept for a backward pass, as in an engine.

        Its input and the sum that goes on, and either queries, keys, values and the result of attention, or
        the outputs of both linear layers of the MLP and their product.
        """
        attention, mlp = 2 * (self.queries + self.keys), 3 * self.intermediate
        return w * (2 * self.hidden + max(attention, mlp))

    def activations(self, w: int, recomputed: bool) -> int:
        """Of a token at the end of the forward pass, and what flows backward through one layer.

        `recomputed`: each layer keeps its input only, and computes the rest again (arXiv 1604.06174).
        """
        if self.layers is None:
            return 0
        layer = self.layer_activations(w)
        kept = self.layers * self.hidden * w + layer if recomputed else self.layers * layer
        last_norm = self.hidden * (FLOAT32 + 3 * w)  # and the copy of its result that the head reads
        flowing = 3 * w * self.intermediate
        return kept + last_norm + flowing

    def cache(self, w: int, shards: int) -> int:
        """Keys and values of a token in an engine, on each of its GPUs; a head of keys is never divided."""
        if self.layers is None:
            return 0
        width = self.queries // self.heads
        return 2 * w * self.layers * max(width, self.keys // shards)
