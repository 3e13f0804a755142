"""Intervals of means over prompts. Suffixes of names: P prompts, E experiments (computed together)."""

from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
CHUNK = 2**22  # numbers that are drawn at a time
LEVEL = 0.95
FEW = 4  # prompts above 0, or below 1; with fewer a bootstrap knows too little of the spread


class Interval(NamedTuple):
    """Where the true value lies with the given probability."""

    low: float
    high: float


def wilson(
    successes: float,
    trials: float,
    level: float = LEVEL,
) -> Interval:
    """Wilson's interval of a proportion (E. B. Wilson, 1927)."""
    z = normal_quantile(level)
    share = successes / trials
    shrink = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    variance = share * (1 - share) / trials
    half = z / shrink * np.sqrt(variance + (z / (2 * trials)) ** 2)
    low = float(middle - half)
    high = float(middle + half)
    return Interval(max(0.0, low), min(1.0, high))


def mean_interval(values_P: Sequence[float] | np.ndarray, level: float = LEVEL) -> Interval:
    """The interval of the mean over prompts; prompts are taken as a sample of those that could be asked.

    Of values that are all 0 or 1, one sample a prompt, it is Wilson's. Of other values in 0 to 1 it is a
    studentized bootstrap over prompts on the arcsine scale, which also holds for 30 prompts with a skewed
    distribution, where 1.96 standard errors and percentiles of a bootstrap are too narrow. Where nearly all
    prompts are 0, or nearly all 1, it is Wilson's too. Values outside 0 to 1 are not transformed. NaN with
    fewer than two prompts.
    """
    values = np.asarray(values_P, dtype=np.float64)
    if len(values) < 2:
        return Interval(np.nan, np.nan)
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(values.sum(), len(values), level)
    low, high = mean_intervals(values[None], level)
    return Interval(float(low[0]), float(high[0]))


def mean_intervals(values_EP: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the bootstrap interval of each row's mean; see `mean_interval`.

    A row says too little about the spread of its prompts if all its values are the same, or fewer than FEW
    are above 0 or below 1. In 0 to 1 it gets Wilson's interval of as many prompts, which is that of zeros
    and ones: no other values with that mean spread more. Elsewhere values that are all the same get an
    interval of no width.
    """
    values = np.asarray(values_EP, dtype=np.float64)
    prompts = values.shape[1]
    is_share = bool((values >= 0).all() and (values <= 1).all())
    mean = values.mean(axis=1)
    error = values.std(axis=1, ddof=1) / np.sqrt(prompts)
    centre, scale = _transformed(mean, error, is_share)
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    low_t, high_t = _quantiles(_bootstrap_t(values, is_share), quantiles)
    low = centre - high_t * scale
    high = centre - low_t * scale
    is_flat = error == 0
    if not is_share:
        return np.where(is_flat, mean, low), np.where(is_flat, mean, high)
    low = _share_of(low)
    high = _share_of(high)
    telling = np.minimum((values > 0).sum(axis=1), (values < 1).sum(axis=1))
    for row in np.flatnonzero((telling < FEW) | is_flat):
        low[row], high[row] = wilson(mean[row] * prompts, prompts, level)
    return low, high


def _transformed(
    mean: np.ndarray,
    error: np.ndarray,
    is_share: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error on the scale of the bootstrap: arcsine of the root for shares."""
    if not is_share:
        return mean, error
    mean = np.clip(mean, 0.0, 1.0)
    angle = np.arcsin(np.sqrt(mean))
    spread = 2.0 * np.sqrt(mean * (1.0 - mean))
    slope = 1.0 / np.maximum(spread, 1e-9)
    return angle, error * slope


def _share_of(angle: np.ndarray) -> np.ndarray:
    """Back from the arcsine scale."""
    within = np.clip(angle, 0, np.pi / 2)
    return np.sin(within) ** 2


def _bootstrap_t(values_EP: np.ndarray, is_share: bool) -> np.ndarray:
    """(resamples, E) studentized differences of resampled means; NaN where a resample has no spread."""
    prompts = values_EP.shape[1]
    mean = values_EP.mean(axis=1)
    centred = values_EP - mean[:, None]
    centre, _ = _transformed(mean, mean, is_share)
    squares = centred**2
    rng = np.random.default_rng(0)
    size = max(1, CHUNK // prompts)
    found = []
    for first in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - first)
        weights = _resampling_weights(rng, count, prompts)
        shift = weights @ centred.T / prompts
        total = weights @ squares.T - prompts * shift**2
        variance = np.maximum(total, 0.0) / (prompts - 1)
        error = np.sqrt(variance / prompts)
        error[error < 1e-9] = np.nan
        moved, scale = _transformed(mean + shift, error, is_share)
        found.append((moved - centre) / scale)
    together = np.concatenate(found)
    is_empty = np.isnan(together).all(axis=0)
    together[:, is_empty] = 0.0
    return together


def _quantiles(values: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """(quantiles, E) of the columns without their NaN."""
    by_experiment = np.ascontiguousarray(values.T)
    found = np.quantile(by_experiment, quantiles, axis=1)
    for column in np.flatnonzero(np.isnan(found[0])):
        found[:, column] = np.nanquantile(by_experiment[column], quantiles)
    return found


def _resampling_weights(
    rng: np.random.Generator,
    resamples: int,
    prompts: int,
) -> np.ndarray:
    """(resamples, prompts): how often each prompt is drawn, with replacement."""
    shape = (resamples, prompts)
    drawn = rng.integers(0, prompts, shape)
    rows = np.arange(resamples)[:, None]
    places = (drawn + rows * prompts).ravel()
    counts = np.bincount(places, minlength=resamples * prompts)
    return counts.reshape(shape).astype(np.float64)


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """What a Student t variable with so many degrees of freedom stays below in absolute value."""
    angle, below = _student(freedom)
    found = np.interp(level, below, angle)
    scale = np.sqrt(freedom)
    return float(scale * np.tan(found))


def t_tails(value: float, freedom: int) -> float:
    """The chance that a Student t variable is as far from 0 as the value, or further."""
    angle, below = _student(freedom)
    reached = np.arctan(abs(value) / np.sqrt(freedom))
    return 1.0 - float(np.interp(reached, angle, below))


@lru_cache(maxsize=16)
def _student(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles, and the chances that |t| is below sqrt(freedom) tan(angle)."""
    # In this angle the density of t is a power of its cosine.
    angle = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    middle = (density[1:] + density[:-1]) / 2
    below = np.concatenate([[0.0], np.cumsum(middle)])
    return angle, below / below[-1]


def normal_quantile(level: float) -> float:
    """What a normal variable stays below in absolute value with that probability."""
    return NormalDist().inv_cdf((1 + level) / 2)
