"""Values that change with the optimizer steps of a stage."""

import math


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """`start` at step 0, down to `end` at `steps` along half a cosine, `end` after it."""
    return end if step >= steps else end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def warmup_then_cosine(step: int, warmup: int, peak: float, valley: float, decay: int) -> float:
    """Linearly from 0 to `peak` in `warmup` steps, then down to `valley` along half a cosine in `decay` steps (CHORD, arXiv 2508.11408)."""
    return step / warmup * peak if step < warmup else cosine(step - warmup, peak, valley, decay)
