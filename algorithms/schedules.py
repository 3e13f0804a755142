"""Values that change with the optimizer steps of a stage; step 0 is the first step of the stage."""

import math


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """From `start` at step 0 to `end` at step `steps` along half a cosine; `end` after that."""
    if step >= steps:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def warmup_then_cosine(step: int, warmup: int, peak: float, valley: float, decay: int) -> float:
    """μ of CHORD (arXiv 2508.11408).

    Linear from 0 to `peak` in `warmup` steps, then to `valley` along half a cosine in `decay` steps.
    """
    if step < warmup:
        return step / warmup * peak
    return cosine(step - warmup, peak, valley, decay)
