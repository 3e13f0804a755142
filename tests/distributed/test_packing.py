"""An update with packed sequences is that with padded ones, for every registered algorithm."""

from dataclasses import replace

from algorithms import REGISTRY
from tests.distributed.harness import Case, calibrated, difference, run


def test_packed_update_equals_the_padded_one(tiny_model, capsys):
    stages = [cls().stage(0, 2).algorithm for cls in REGISTRY.values()]
    padded = [calibrated(tiny_model, Case(algorithm, micro_batch_tokens=100)) for algorithm in stages]
    cases = [replace(case, packing=packing) for case in padded for packing in (False, True)]
    states = [state for state, _ in run(tiny_model, 1, cases)]
    gaps = [
        difference(packed, {name: value.double() for name, value in plain.items()})
        for plain, packed in zip(states[::2], states[1::2], strict=True)
    ]
    with capsys.disabled():
        print(f"\n{len(gaps)} updates, packed and padded: largest relative difference {max(gaps):.1e}")
    assert max(gaps) <= 1e-6
