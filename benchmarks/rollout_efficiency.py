"""Tokens/s of the library's rollouts, divided by those of bare vLLM on the same prompts with the same seeds.

    python benchmarks/rollout_efficiency.py [--repeats 5]

The time of the library includes Ray Data, the coordinator, verification and credit. Both engines run with one
thread and have all sequences in flight at once. Prints the ratio, also with verifiers that take 50 ms for
each response and are as many as that needs; start-up and warm-up are not counted.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from srft_ray import make_config
from srft_ray.config.resolve import resolve
from srft_ray.data.blocks import groups_of
from srft_ray.rollout.requests import sequence_seed
from srft_ray.run.cluster import start_ray
from srft_ray.run.placement import Placement
from srft_ray.run.preflight import prepare_run
from srft_ray.run.trainer import stream_source
from srft_ray.sync.coordinator import Coordinator

ROOT = Path(__file__).resolve().parents[1]
SLOW = {"path": str(ROOT / "benchmarks/slow_verifier.py:verify"), "num_workers": 64, "memory_mb": 256}


def benchmark_config(folder: str, steps: int, groups: int, verifier: dict):
    return make_config(
        {
            "run": {"name": "rollouts", "dir": folder},
            "verifier": verifier,
            "model": {"path": str(ROOT / "examples/tiny/base"), "max_length": 256},
            "data": {"format": "tasks", "path": "sums", "size": 1024},
            "rollout": {"num_rollouts": 8, "max_new_tokens": 96, "max_staleness": steps},
            "trainer": {"steps": steps, "groups_per_step": groups},
        }
    )


@ray.remote(num_cpus=1)
def bare_vllm(config, prompts, seeds, warm_up, repeats):
    """Tokens/s of vLLM's own `LLM.generate`, in a process like the pipeline's."""
    from srft_ray.rollout.engine_settings import set_environment

    set_environment(config.rollout, "cpu")
    from vllm import LLM, SamplingParams

    llm = LLM(
        config.model.path,
        dtype="float32",
        enforce_eager=True,
        max_model_len=config.model.max_length,
        distributed_executor_backend="uni",
        max_num_seqs=config.rollout.max_num_seqs,
        logprobs_mode="processed_logprobs",
        enable_chunked_prefill=False,
        max_num_batched_tokens=8192,
    )
    sampling = [
        SamplingParams(max_tokens=config.rollout.max_new_tokens, temperature=1.0, seed=seed, logprobs=0)
        for seed in seeds
    ]
    rates = []
    for _ in range(repeats):
        llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts[:warm_up]], sampling[:warm_up], use_tqdm=False
        )
        started = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        rates.append(sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - started))
    return rates


def pipeline(prepared, warm_up_steps):
    """(tokens/s over the steps after the warm-up, groups of these steps), as a learner would receive them."""
    max_staleness = prepared.resolved.config.rollout.max_staleness
    coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(max_staleness)
    start = ray.get(coordinator.restart.remote(0))
    source = stream_source(prepared, coordinator, Placement("cpu"))
    groups = []
    for batch in source.stream(0, start.generation).iter_batches(
        batch_size=prepared.plan.block, batch_format="numpy", prefetch_batches=0
    ):
        groups += groups_of(batch)
        finished = time.time()
    counted = [g for g in groups if g.step >= warm_up_steps]
    tokens = sum(len(c.ids) for g in counted for c in g.rollouts)
    seconds = finished - min(g.started_at for g in counted)
    return tokens / seconds, counted


def compare(prepared: dict[str, Any]) -> dict[str, float]:
    """The ratio with each verifier, measured one after the other, and the figures behind it printed."""
    measured = {name: pipeline(of_verifier, 0) for name, of_verifier in prepared.items()}
    _, groups = measured["fast"]
    requests = [(g, c) for g in groups for c in g.rollouts]
    config = prepared["fast"].resolved.config
    seeds = [sequence_seed(config.run.seed, g, c.sample) for g, c in requests]
    [bare] = ray.get(bare_vllm.remote(config, [g.prompt_ids for g, _ in requests], seeds, 64, 1))
    ratios = {name: rate / bare for name, (rate, _) in measured.items()}
    parts = [f"{name} verifier {rate:,.0f} ({ratios[name]:.2f})" for name, (rate, _) in measured.items()]
    print(f"tokens/s: bare vLLM {bare:,.0f}, {', '.join(parts)}; {len(requests)} sequences", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="measurements of all (default %(default)s)")
    parser.add_argument("--groups", type=int, default=384, help="prompts (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = {}
        for name, verifier in (("fast", {}), ("slow", SLOW)):
            config = benchmark_config(f"{folder}/{name}", 1, arguments.groups, verifier)
            prepared[name] = prepare_run(resolve(config))
        start_ray(config.cluster, 6)
        ratios = [compare(prepared) for _ in range(arguments.repeats)]
        ray.shutdown()
    for name in prepared:
        print(f"median ratio, {name} verifier: {statistics.median(ratio[name] for ratio in ratios):.2f}")


if __name__ == "__main__":
    main()
