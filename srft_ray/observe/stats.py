"""Statistics of evaluations: what a number of samples of a number of prompts says about a model.

The prompt is the unit: samples of one prompt depend on each other. Suffixes of names: P prompts, E
experiments (computed together). All functions are pure; what is random has a fixed seed.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from srft_ray.observe.intervals import CHUNK, LEVEL, Interval, normal_quantile, t_quantile, t_tails

FLIPS = 4999
ROUNDING = 1e-12  # of averages that are equal


class Paired(NamedTuple):
    """The difference of two models on the same prompts.

    Attributes:
        mean: of the second minus the first.
        interval: of the mean, over prompts.
        p: two-sided, of a permutation test that flips the signs of the prompts' differences.
        deviation: standard deviation of the prompts' differences.
    """

    mean: float
    interval: Interval
    p: float
    deviation: float


def pass_at_k(
    samples_P: np.ndarray,
    correct_P: np.ndarray,
    k: int,
) -> np.ndarray:
    """The unbiased estimate of each prompt's chance that one of k samples is right: 1 - C(n-c, k) / C(n, k).

    Source: arXiv 2107.03374, equation 1.

    Raises:
        ValueError: a prompt has fewer than k samples.
    """
    n = np.asarray(samples_P)
    c = np.asarray(correct_P)
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@{k} needs at least {k} samples of each prompt.")
    # The product over the k draws without replacement: draw i misses with (n - c - i) / (n - i).
    draws = np.arange(k)
    left = n[:, None] - draws
    wrong_left = np.clip(left - c[:, None], 0, None)
    misses = wrong_left / left
    return 1.0 - misses.prod(axis=1)


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4, … and `samples`: the k for which pass@k is shown."""
    ks = [2**power for power in range(samples.bit_length()) if 2**power < samples]
    return [*ks, samples]


def majority(
    answers: Sequence[str | None],
    rewards: Sequence[float],
    correct_above: float = 0.5,
) -> float:
    """The chance that the most frequent answer of a prompt is right; answers that tie are drawn from equally.

    All right answers count as one, however they are written. A sample without an answer does not vote.
    """
    right = 0
    others: dict[str, int] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if reward > correct_above:
            right += 1
        elif answer is not None:
            others[answer] = others.get(answer, 0) + 1
    most = max([right, *others.values()])
    if right < most or most == 0:
        return 0.0
    return 1.0 / (1 + sum(votes == most for votes in others.values()))


def paired(first_P: Sequence[float], second_P: Sequence[float]) -> Paired:
    """Compares two models on the same prompts, in the same order."""
    difference = np.asarray(second_P, dtype=np.float64) - np.asarray(first_P, dtype=np.float64)
    mean = float(difference.mean())
    if len(difference) < 2:
        return Paired(
            mean,
            Interval(np.nan, np.nan),
            1.0,
            np.nan,
        )
    deviation = float(difference.std(ddof=1))
    # Differences are nearly symmetric, so that Student's interval holds.
    half = t_quantile(len(difference) - 1) * deviation / np.sqrt(len(difference))
    interval = Interval(mean - float(half), mean + float(half))
    return Paired(
        mean,
        interval,
        float(sign_flip_p(difference[None])[0]),
        deviation,
    )


def over_seeds(differences: Sequence[np.ndarray]) -> Paired:
    """The difference of two methods that were each trained with the same seeds.

    The seed is the unit: the interval is Student's over the means of the seeds, which vary by seed and by
    prompt, and p is of Student's test. With one seed, or where the means of all seeds are equal, it is the
    paired test over all prompts, which knows nothing of what differs between seeds.

    Args:
        differences: of each seed the differences of its prompts.
    """
    means = np.array([of_seed.mean() for of_seed in differences])
    # Few samples of few prompts often give two seeds the same mean: that is no proof of a difference.
    if np.ptp(means) <= ROUNDING:
        return _over_prompts(np.concatenate(list(differences)))
    mean = float(means.mean())
    deviation = float(means.std(ddof=1))
    error = deviation / np.sqrt(len(means))
    freedom = len(means) - 1
    half = t_quantile(freedom) * error
    return Paired(mean, Interval(mean - half, mean + half), t_tails(mean / error, freedom), deviation)


def _over_prompts(differences: np.ndarray) -> Paired:
    if not differences.any():
        return Paired(0.0, Interval(0.0, 0.0), 1.0, 0.0)
    return paired(np.zeros(len(differences)), differences)


def sign_flip_p(differences_EP: np.ndarray) -> np.ndarray:
    """Two-sided p-value of each row: how often random signs give a mean as far from 0 as that found.

    Under the null hypothesis the models are exchangeable on each prompt, so that every sign is as likely.
    Sums that are equal to that found count half (the mid-p value): averages of few samples often tie, and a
    test that counts ties whole rejects far less often than its level says.
    """
    differences = np.asarray(differences_EP, dtype=np.float64)
    prompts = differences.shape[1]
    observed = np.abs(differences.sum(axis=1))
    rounding = 1e-9 * np.abs(differences).sum(axis=1)
    rng = np.random.default_rng(0)
    further = np.zeros(len(differences))
    as_far = np.zeros(len(differences))
    step = max(1, CHUNK // prompts)
    for first in range(0, FLIPS, step):
        shape = (min(step, FLIPS - first), prompts)
        heads = rng.integers(
            0,
            2,
            shape,
            dtype=np.int8,
        )
        signs = 2.0 * heads - 1.0
        sums = np.abs(signs @ differences.T)
        further += (sums > observed + rounding).sum(axis=0)
        as_far += (sums >= observed - rounding).sum(axis=0)
    # What was found is one of the possible signs: it counts as a draw that ties.
    return (0.5 * (further + as_far) + 0.5) / (1.0 + FLIPS)


def crossed(values_SP: np.ndarray) -> Paired:
    """The mean difference over new seeds and new prompts, of differences that every seed has of every prompt.

    Seeds and prompts are crossed random effects: the variance of the mean has a part of the seeds, one of the
    prompts and one of both together. It is estimated by mean squares, (MS_S + MS_P - MS_SP) / (S P), with
    the degrees of freedom of F. E. Satterthwaite (1946); a part that is estimated to be negative is left
    out. Interval and p are those of Student's test, or, where nothing varies by seed or prompt, those of the
    paired test over all differences; without an interval with fewer than two seeds or prompts.
    """
    seeds, prompts = values_SP.shape
    mean = float(values_SP.mean())
    if min(seeds, prompts) < 2:
        return Paired(mean, Interval(np.nan, np.nan), 1.0, np.nan)
    of_seed = values_SP.mean(axis=1, keepdims=True)
    of_prompt = values_SP.mean(axis=0, keepdims=True)
    rest = values_SP - of_seed - of_prompt + mean
    freedom_SPI = np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)])
    squares_SPI = np.array(
        [
            prompts * ((of_seed - mean) ** 2).sum(),
            seeds * ((of_prompt - mean) ** 2).sum(),
            (rest**2).sum(),
        ]
    )
    by_seed, by_prompt, by_both = squares_SPI / freedom_SPI
    # With one part left out, the other two are the larger mean square.
    parts = np.array([by_seed, by_prompt, -by_both])
    if min(by_seed, by_prompt) < by_both:
        parts = np.where(np.arange(3) == np.argmax([by_seed, by_prompt]), parts, 0.0)
    variance = parts.sum() / (seeds * prompts)
    if variance <= ROUNDING**2:
        return _over_prompts(values_SP.ravel())
    freedom = max(1, int(parts.sum() ** 2 / (parts**2 / freedom_SPI).sum()))
    error = float(np.sqrt(variance))
    half = t_quantile(freedom) * error
    interval = Interval(mean - half, mean + half)
    return Paired(mean, interval, t_tails(mean / error, freedom), float(values_SP.std(ddof=1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for as many tests as there are (S. Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return adjusted


def prompts_needed(
    deviation: float,
    difference: float,
    power: float = 0.8,
    level: float = LEVEL,
) -> float:
    """Prompts with which a paired test finds a difference of that size with that probability.

    `deviation`: standard deviation of the prompts' differences. Infinite for a difference of 0.
    """
    if difference == 0:
        return np.inf
    z = normal_quantile(level) + NormalDist().inv_cdf(power)
    return max(2.0, float(np.ceil((z * deviation / difference) ** 2)))
