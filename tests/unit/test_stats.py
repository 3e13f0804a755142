"""The statistics of evaluations, against worked values, brute force and simulated experiments."""

import itertools
import math

import numpy as np
import pytest

from srft_ray.observe import intervals, stats

EXPERIMENTS = 2000


def simulated(shape, prompts=30, samples=32, seed=1):
    """(experiments, prompts) averages of models whose prompts have chances drawn from a Beta distribution."""
    rng = np.random.default_rng(seed)
    chances = rng.beta(*shape, (EXPERIMENTS, prompts))
    return rng.binomial(samples, chances) / samples


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (6, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, c):
    samples = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(samples, k))
        expected = sum(map(any, subsets)) / len(subsets)
        found = stats.pass_at_k(np.array([n]), np.array([c]), k)
        assert found[0] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="at least 7 samples"):
        stats.pass_at_k(np.array([n]), np.array([c]), 7)


def test_pass_at_k_is_stable_with_many_samples():
    found = stats.pass_at_k(np.array([4096, 4096]), np.array([1, 2000]), 2048)
    assert found == pytest.approx([0.5, 1.0])


def test_the_ks_that_are_shown():
    assert stats.powers_of_two(1) == [1]
    assert stats.powers_of_two(8) == [1, 2, 4, 8]
    assert stats.powers_of_two(10) == [1, 2, 4, 8, 10]


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        (["4", "4", "5"], [1, 1, 0], 1.0),
        (["4", "5", "5"], [1, 0, 0], 0.0),
        (["4", "5"], [1, 0], 0.5),
        (["1/2", "0.5", "3", "3"], [1, 1, 0, 0], 0.5),
        ([None, None, None, "4"], [0, 0, 0, 1], 1.0),
        ([None, None], [0, 0], 0.0),
        (["4", "5", "6"], [1, 0, 0], 1 / 3),
    ],
)
def test_majority(answers, rewards, expected):
    assert stats.majority(answers, rewards) == pytest.approx(expected)


def test_wilson():
    """Values of the formula worked out by hand for z = 1.95996."""
    assert intervals.wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert intervals.wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    low, high = intervals.wilson(30, 30)
    assert (low, high) == pytest.approx((0.88649, 1.0), abs=1e-5)
    assert intervals.mean_interval([1.0] * 3 + [0.0] * 7) == intervals.wilson(3, 10)


def test_student():
    for freedom, expected in ((1, 12.7062), (2, 4.30265), (29, 2.04523), (1000, 1.96234)):
        assert intervals.t_quantile(freedom) == pytest.approx(expected, rel=1e-4)
        assert intervals.t_tails(-expected, freedom) == pytest.approx(0.05, abs=1e-4)
    assert intervals.t_tails(0.0, 5) == 1.0


@pytest.mark.parametrize("shape", [(0.3, 0.3), (2, 2), (0.15, 2), (0.08, 2), (2, 0.08)], ids=str)
def test_intervals_hold_for_30_prompts_of_32_samples(shape):
    truth = shape[0] / sum(shape)
    low, high = intervals.mean_intervals(simulated(shape))
    coverage = float(((low <= truth) & (truth <= high)).mean())
    print(f"Beta{shape}: {coverage:.3f} of {EXPERIMENTS} intervals hold {truth:.3f}")
    assert 0.93 <= coverage <= 0.97
    assert ((low >= 0) & (high <= 1) & (low <= high)).all()


def test_an_interval_does_not_depend_on_what_is_computed_beside_it():
    values = simulated((0.3, 1.5))[:5]
    low, high = intervals.mean_intervals(values)
    for row, expected in enumerate(zip(low, high, strict=True)):
        assert intervals.mean_interval(values[row]) == pytest.approx(expected, abs=1e-12)


def test_few_prompts_that_tell_give_the_widest_interval():
    """A bootstrap of one prompt that is half right of 40 would end just above its mean."""
    for values in ([0.5] + [0.0] * 39, [1.0] * 30 + [0.25, 0.5, 0.75]):
        assert intervals.mean_interval(values) == intervals.wilson(sum(values), len(values))
    low, high = intervals.mean_interval([0.5] * 4 + [0.0] * 36)
    assert 0 < low < 0.05 < high < intervals.wilson(2, 40).high + 0.1


def test_intervals_of_special_sets():
    assert intervals.mean_interval([0.25] * 20) == intervals.wilson(5, 20)
    assert all(math.isnan(end) for end in intervals.mean_interval([0.5]))
    scores = [3.0, 4.0, 5.0, 4.5, 3.5, 4.0, 4.2, 3.8]
    low, high = intervals.mean_interval(scores)
    assert low < 4.0 < high and high - low < 2.0
    assert intervals.mean_interval([7.0, 7.0, 7.0]) == (7.0, 7.0)


def test_the_paired_test_has_its_size_and_its_interval_holds():
    rng = np.random.default_rng(3)
    chances = rng.beta(0.3, 1.5, (EXPERIMENTS, 30))
    differences = (rng.binomial(32, chances) - rng.binomial(32, chances)) / 32
    size = float((stats.sign_flip_p(differences) <= 0.05).mean())
    half = intervals.t_quantile(29) * differences.std(axis=1, ddof=1) / math.sqrt(30)
    coverage = float((np.abs(differences.mean(axis=1)) <= half).mean())
    print(f"size {size:.4f}, coverage of the difference {coverage:.3f}")
    assert 0.04 <= size <= 0.06
    assert 0.93 <= coverage <= 0.97


def test_sign_flips_against_all_signs():
    """All 2^8 signs of eight differences, with the tie counted half."""
    differences = np.array([3.0, 1.0, -2.0, 4.0, 0.5, -0.25, 2.0, 1.5])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    observed = abs(differences.sum())
    ties = sum(abs(total - observed) < 1e-9 for total in sums)
    exact = (sum(total > observed + 1e-9 for total in sums) + ties / 2) / len(sums)
    assert stats.sign_flip_p(differences[None])[0] == pytest.approx(exact, abs=0.01)
    assert stats.sign_flip_p(np.zeros((1, 5)))[0] == pytest.approx(0.5)


def test_paired():
    first, second = [0.0, 0.5, 0.25, 0.75], [0.5, 0.5, 0.75, 1.0]
    found = stats.paired(first, second)
    assert found.mean == pytest.approx(0.3125)
    assert found.deviation == pytest.approx(np.std([0.5, 0, 0.5, 0.25], ddof=1))
    half = 3.18245 * found.deviation / 2
    assert found.interval == pytest.approx((0.3125 - half, 0.3125 + half), abs=1e-4)
    assert 0 < found.p < 0.3


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_prompts_needed_find_the_difference_as_often_as_they_should():
    """(1.96 + 0.8416)² · (0.3 / 0.1)² = 70.6."""
    assert stats.prompts_needed(0.3, 0.1) == 71
    assert stats.prompts_needed(0.3, 0.0) == math.inf
    rng = np.random.default_rng(7)
    differences = rng.normal(0.1, 0.3, (EXPERIMENTS // 2, 71))
    assert float((stats.sign_flip_p(differences) <= 0.05).mean()) == pytest.approx(0.8, abs=0.04)


def test_methods_are_compared_over_seeds():
    """Means of the seeds 0.1, 0.2 and 0.3: t = 0.2 / (0.1 / sqrt(3)) with two degrees of freedom."""
    found = stats.over_seeds([np.array([0.0, 0.2]), np.array([0.2, 0.2]), np.array([0.5, 0.1])])
    assert found.mean == pytest.approx(0.2) and found.deviation == pytest.approx(0.1)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
    assert found.p == pytest.approx(0.0742, abs=1e-3)
    one = np.array([0.5, 0.25, 0.0])
    assert stats.over_seeds([one]) == stats.paired([0.0] * 3, one)
    assert stats.over_seeds([np.zeros(2), np.zeros(2)]).p == 1.0
