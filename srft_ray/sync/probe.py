"""A fixed sequence whose log-probs show whether an engine computes with the weights that it loaded.

A fingerprint proves which tensors were given to an engine, not that the engine uses them. Rollouts of the
version that is trained show it: the learners score them again. Rollouts of older versions are never scored by
the weights that sampled them, so learners and engines compare this sequence instead, once for each version.
"""

import numpy as np

PROBE_TOKENS = 32


def probe_ids(vocab_size: int, max_length: int) -> list[int]:
    """Token ids from all over the vocabulary, the same for engines and learners; at most `max_length` - 1."""
    length = min(PROBE_TOKENS, max_length - 1)
    return np.random.default_rng(0).integers(vocab_size, size=length).tolist()


def mean_difference(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Mean absolute difference of log-probs in nats; infinity if their numbers are not equal."""
    if len(one) != len(other) or not one:
        return float("inf")
    return float(np.abs(np.subtract(one, other)).mean())
