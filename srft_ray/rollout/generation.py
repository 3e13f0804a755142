"""What is asked of an engine and what it gives, without vllm."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How sequences are sampled; `max_new_tokens` is the longest response, in tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Generation:
    """One sampled sequence.

    Attributes:
        ids: the sampled tokens.
        logprobs: of each token at the sampling temperature, in nats.
        finish_reason: `stop` or `length`.
    """

    ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
