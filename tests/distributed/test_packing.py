"""An update with packed sequences is that with padded ones, for every algorithm in several architectures.

The difference that is left is that of float32 sums in another order. Where it is above the limit, which
depends on the CPU, padded rows in micro-batches of other sizes must differ as much.
`tests/unit/test_packing.py` shows in float64 that nothing else is behind it.
"""

from dataclasses import replace

import pytest

from algorithms import REGISTRY, TwoStage
from tests.distributed.harness import Case, calibrated, difference, run
from tests.unit.test_packing import KINDS, architecture

LIMIT = 1e-6
OTHER_SIZES = (60, 150, 250, 1000)  # tokens of a micro-batch
ALGORITHMS = list(REGISTRY)


def case(name):
    """One update; of a method of two stages one of each."""
    algorithm = REGISTRY[name]()
    return Case(algorithm, steps=2 if isinstance(algorithm, TwoStage) else 1, micro_batch_tokens=100)


def gap(one, other):
    return difference(other, {key: value.double() for key, value in one.items()})


def rounding(case, folder):
    """The largest difference between updates with padded rows in micro-batches of several sizes."""
    sizes = (case.micro_batch_tokens, *OTHER_SIZES)
    first, *others = run(folder, 1, [replace(case, micro_batch_tokens=tokens) for tokens in sizes])
    return max(gap(first[0], state) for state, _ in others)


def check(kind, names, folder, capsys):
    architecture(kind).save_pretrained(folder)
    padded = [calibrated(folder, case(name)) for name in names]
    both = [replace(case, packing=packing) for case in padded for packing in (False, True)]
    states = [state for state, _ in run(folder, 1, both)]
    gaps = {
        name: gap(plain, packed) for name, plain, packed in zip(names, states[::2], states[1::2], strict=True)
    }
    worst = max(gaps, key=gaps.get)
    with capsys.disabled():
        print(
            f"\n{len(gaps)} updates of {kind}, packed and padded: "
            f"largest relative difference {gaps[worst]:.1e} ({worst})"
        )
    cases = dict(zip(names, padded, strict=True))
    above = {name: found for name, found in gaps.items() if found > LIMIT}
    assert {name: found for name, found in above.items() if found > rounding(cases[name], folder)} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_update_equals_the_padded_one(kind, tmp_path, capsys):
    """Each algorithm in one architecture, in turn; the full test has all in each."""
    check(kind, ALGORITHMS[KINDS.index(kind) :: len(KINDS)], tmp_path, capsys)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_in_every_architecture(kind, tmp_path, capsys):
    check(kind, ALGORITHMS, tmp_path, capsys)
