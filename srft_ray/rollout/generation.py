"""What is asked of an engine and what it gives, without vllm."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How sequences are sampled.

    Attributes:
        max_new_tokens: the longest response, in tokens.
        stop: texts at which a sequence ends; they stay in it.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """One response, or one turn of it.

    Attributes:
        ids: its tokens.
        logprobs: of each token at the sampling temperature, in nats; 0 for what an environment said.
        finish_reason: `stop` or `length`; for several turns see `turns.converse`.
        stop: the text of `Sampling.stop` that ended it, if one did.
        observed: half-open spans of `ids` that an environment said.
        loads: (number of the load that brought the engine's weights, first token sampled by them), in order.
    """

    ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
    stop: str | None = None
    observed: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()
