"""Time of a learner step, divided by that of a bare torch loop with the same forward and backward passes.

    python benchmarks/learner_efficiency.py [--threads 2] [--repeats 9]

Both alternate in one process and see the same padded micro-batches of the tiny model. The bare loop computes
the log-probs of the response tokens from full logits, sums them, goes backward and applies AdamW. The learner
adds entropies, SRFT's terms, global counts, clipping, the parity check and metrics. Prints the ratio of the
medians.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from algorithms import SRFT, Completion, Group
from srft_ray.config.training import LearnerSection
from srft_ray.train.batching import cut, trained_sequences

MODEL = Path(__file__).resolve().parents[1] / "examples/tiny/base"


def make_groups(count: int = 16, rollouts: int = 8) -> list[Group]:
    rng = random.Random(0)
    groups = []
    for group_id in range(count):
        group = Group(0, group_id, "", [rng.randrange(3, 250) for _ in range(48)], "")
        for sample in range(rollouts + 1):
            ids = [rng.randrange(3, 250) for _ in range(rng.randrange(24, 64))]
            origin = "rollout" if sample < rollouts else "demo"
            logprobs = [-1.0] * len(ids) if origin == "rollout" else None
            group.completions.append(
                Completion(sample, origin, "", ids, logprobs, -1, reward=float(sample % 2))
            )
        for completion, advantage in zip(group.completions, SRFT().advantages(group), strict=True):
            completion.advantage = advantage
        groups.append(group)
    return groups


def bare_step(model, optimizer, micro_batches) -> None:
    for batch in micro_batches:
        logits = model(input_ids=batch.input_ids_BL, use_cache=False).logits
        picked = logits[batch.rows_N, batch.positions_N - 1].log_softmax(-1)
        picked.gather(-1, batch.input_ids_BL[batch.rows_N, batch.positions_N][:, None]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default all)")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    from transformers import AutoModelForCausalLM

    from srft_ray.train.deepspeed_engine import DeepSpeedEngine, deepspeed
    from srft_ray.train.learner import Learner

    deepspeed.init_distributed("gloo", verbose=False)
    config = LearnerSection(lr=1e-5, micro_batch_tokens=4096, zero_stage=0)
    learner = Learner(
        DeepSpeedEngine(
            AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), config, torch.float32
        ),
        config,
        1e9,
    )
    bare = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-5)
    groups = make_groups()
    times = {"learner": [], "bare": []}
    micro_batches = cut(trained_sequences(groups), config.micro_batch_tokens, 0)
    for _ in range(options.repeats + 1):
        started = time.perf_counter()
        bare_step(bare, optimizer, micro_batches)
        middle = time.perf_counter()
        learner.step(groups, 0, SRFT().stage(0, 1), 1.0)
        times["bare"].append(middle - started)
        times["learner"].append(time.perf_counter() - middle)
    # The first step of both is a warm-up.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(
        f"learner {medians['learner']:.3f} s, bare torch {medians['bare']:.3f} s per step of "
        f"{len(micro_batches)} micro-batches, {options.threads} threads: "
        f"ratio {medians['learner'] / medians['bare']:.2f}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
