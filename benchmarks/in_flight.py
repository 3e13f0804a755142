"""Step time of GRPO with `max_staleness` 1 and updates in flight, over that without them.

    python benchmarks/in_flight.py [--steps 16] [--repeats 1]

The long-tailed world of `against_trl.py`: a random model of 0.8 million parameters, 16 prompts × 8 responses
of up to 512 tokens that end at any token with about the same small probability. One engine and one learner.
The runs alternate; the median is over all steps of all repeats but the first three and the last of each. It
also says how many responses several versions sampled, and the largest difference of the learner's log-probs
from the engine's on tokens of the version that is trained.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

from against_trl import WARM_UP, WORLDS, make_model, write_prompts

from srft_ray import fit, make_config
from srft_ray.observe.journal import read_json_lines

WORLD = WORLDS["long-tailed"]
MODES = {"drained": False, "in flight": True}


def run(folder: Path, name: str, in_flight: bool, steps: int) -> list[dict[str, float]]:
    """The metrics of the counted steps of a run."""
    values = {
        "run": {"name": name, "dir": str(folder), "device": "cpu"},
        "model": {"path": str(folder / "model"), "max_length": WORLD.tokens + 64},
        "data": {"path": str(folder / "prompts.jsonl"), "template": "{prompt}"},
        "verifier": {"path": f"{Path(__file__).with_name('against_trl.py')}:contains"},
        "algorithm": {"name": "grpo"},
        "rollout": {
            "num_rollouts": WORLD.rollouts,
            "max_new_tokens": WORLD.tokens,
            "max_staleness": 1,
            "in_flight": in_flight,
        },
        "learner": {"lr": 1e-6, "zero_stage": 0, "micro_batch_tokens": 16384},
        "trainer": {"steps": steps, "groups_per_step": WORLD.prompts},
    }
    run_dir = fit(make_config(values)).run_dir
    return read_json_lines(run_dir / "metrics.jsonl")[WARM_UP:-1]  # the last step publishes nothing


def describe(mode: str, records: list[dict[str, float]]) -> float:
    """Prints what the steps of a mode took; returns the median, seconds."""
    keys = ("time/step", "time/rollout_wait", "time/learner", "time/generation", "length/mean")
    step, wait, learner, generation, length = (
        statistics.median(record[key] for record in records) for key in keys
    )
    mixed = statistics.mean(record["staleness/mixed"] for record in records)
    gaps = [record["parity/abs_logprob_diff_max"] for record in records if record["parity/tokens"]]
    print(
        f"{mode}: step {step:.3f} s, wait {wait:.3f}, learner {learner:.3f}, generation {generation:.3f}, "
        f"{length:.0f} tokens a response, {mixed:.0%} of several versions, "
        f"parity at most {max(gaps, default=float('nan')):.1e} nats in {len(gaps)} of {len(records)} steps",
        flush=True,
    )
    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=16, help="steps of each run (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each (default %(default)s)")
    options = parser.parse_args()
    records: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(WORLD, folder / "model")
        write_prompts(folder / "prompts.jsonl", WORLD.prompts * options.steps)
        for repeat, mode in itertools.product(range(options.repeats), MODES):
            label = f"{mode.replace(' ', '-')}-{repeat}"
            records[mode] += run(folder, label, MODES[mode], options.steps)
    drained, in_flight = (describe(mode, records[mode]) for mode in MODES)
    print(f"ratio {in_flight / drained:.2f}")


if __name__ == "__main__":
    main()
