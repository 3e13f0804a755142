"""Step time with an evaluation every two steps, sampled beside the update and before it, over that without.

    python benchmarks/evaluation_beside.py [--steps 24] [--repeats 1]

GRPO at staleness 1 from the base model of the quickstart, 16 prompts × 8 responses a step, 32 prompts × 2
responses an evaluation, one engine and one learner. `trainer.patience` keeps evaluations before the update;
here it is larger than the number of evaluations. The runs alternate. The time of a step is that of the pair
of an evaluation and the next one, halved: `time/step` and `time/evaluation`, without checkpoints. The median
is over all pairs of all repeats but the first two of each.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from srft_ray import fit, make_config
from srft_ray.observe.journal import read_json_lines

ROOT = Path(__file__).resolve().parents[1]
EVERY, WARM_UP = 2, 2
EVALUATED = {"evaluate_every": EVERY, "checkpoint_every": EVERY}
PATIENT = {"patience": 10**6, "keep_best": "heldout", "keep_checkpoints": 1}
ORDERS = {"none": {"checkpoint_every": EVERY}, "before": EVALUATED | PATIENT, "beside": EVALUATED}


def run(folder: str, name: str, order: str, steps: int) -> list[dict[str, float]]:
    """The means over each counted pair of steps, in seconds: of a step, and what of it was evaluation."""
    heldout = {"split": "heldout", "size": 32}
    values: dict[str, Any] = {
        "run": {"name": name, "dir": folder, "device": "cpu"},
        "model": {"path": str(ROOT / "examples/tiny/base"), "max_length": 256},
        "data": {"format": "tasks", "path": "sums+products", "size": 4096},
        "algorithm": {"name": "grpo"},
        "rollout": {"num_rollouts": 8, "max_new_tokens": 96, "max_staleness": 1},
        "learner": {"lr": 2e-4, "zero_stage": 0},
        "trainer": {"steps": steps, "groups_per_step": 16, **ORDERS[order]},
        "evaluation": {"samples": 2, "data": {"heldout": heldout}},
    }
    result = fit(make_config(values))
    records = read_json_lines(result.run_dir / "metrics.jsonl")
    pairs = [records[first : first + EVERY] for first in range(EVERY * WARM_UP, steps, EVERY)]
    keys = ("time/step", "time/evaluation", "time/rollout_wait", "time/learner")
    return [{key: statistics.mean(record[key] for record in pair) for key in keys} for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {order: [] for order in ORDERS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for order in ORDERS:
                found[order] += run(folder, f"{order}-{repeat}", order, options.steps)
    medians = {}
    for order, pairs in found.items():
        medians[order] = statistics.median(pair["time/step"] + pair["time/evaluation"] for pair in pairs)
        parts = {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]}
        figures = ", ".join(f"{key} {value:.3f}" for key, value in parts.items())
        print(f"{order:7} {medians[order]:.3f} s ({figures})")
    beside, before, none = medians["beside"], medians["before"], medians["none"]
    print(
        f"beside / before {beside / before:.2f}; over no evaluation: {before / none:.2f}, {beside / none:.2f}"
    )


if __name__ == "__main__":
    main()
