"""Seconds per synchronous step of GRPO, over those of TRL's GRPOTrainer on the same prompts and model.

    python -m venv trl-env && trl-env/bin/pip install trl==1.16.0 transformers==5.19.0 torch==2.13.0
    python benchmarks/against_trl.py --trl-python trl-env/bin/python [--worlds quickstart,medium,long-tailed]

TRL runs in an environment of its own, in one process on all cores, with transformers' generation. We run with
a learner and an engine for each core, which take turns on them. Both sample the same numbers of sequences
from the same prompts, score them by a function that looks for the answer, and make one AdamW update in
float32. The runs alternate. The median is over all steps of all repeats but the first three of each.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "examples/tiny/base"
CORES = os.cpu_count() or 1
WARM_UP = 3  # steps in which kernels compile and the processes start


@dataclass(frozen=True)
class World:
    """A model and the shape of a step.

    Attributes:
        shape: what a random model changes of the tiny one's config.json; None for the tiny one itself.
        tokens: the longest response.
    """

    shape: dict | None
    prompts: int
    rollouts: int
    tokens: int


MEDIUM = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "layer_types": ["full_attention"] * 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "initializer_range": 0.02,
}
WORLDS = {
    "quickstart": World(None, 16, 8, 96),
    "medium": World(MEDIUM, 8, 8, 160),  # 25 million parameters
    # A random model ends a response at any token with about the same small probability.
    "long-tailed": World({"initializer_range": 0.02}, 16, 8, 512),
}


def make_model(world, folder):
    """The path of the world's model; a random one is written into `folder`."""
    if world.shape is None:
        return TINY
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(TINY, **world.shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def write_prompts(file, count):
    from srft_ray.data.tasks import generate
    from srft_ray.data.tokenize import PLAIN_TEMPLATE

    rows = generate("sums+products", "train", count, 0)
    kept = [
        {"prompt": PLAIN_TEMPLATE.replace("{prompt}", row["prompt"]), "answer": row["answer"]} for row in rows
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))


def ours(world, model, prompts, folder, steps):
    """Seconds of each step."""
    config = {
        "run": {"name": "run", "dir": str(folder), "device": "cpu"},
        "cluster": {"placement": "colocated"},
        "model": {"path": str(model), "max_length": world.tokens + 64},
        "data": {"path": str(prompts), "template": "{prompt}"},
        "verifier": {"path": f"{__file__}:contains"},
        "algorithm": {"name": "grpo"},
        "rollout": {
            "num_engines": CORES,
            "num_rollouts": world.rollouts,
            "max_new_tokens": world.tokens,
        },
        "learner": {"num_workers": CORES, "lr": 1e-6, "zero_stage": 0, "micro_batch_tokens": 16384},
        "trainer": {"steps": steps, "groups_per_step": world.prompts},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    quiet(sys.executable, "-m", "srft_ray", "train", file)
    records = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    lengths = [record["length/mean"] for record in records if "length/mean" in record]
    # The last step publishes nothing.
    return [record["time/step"] for record in records][:-1], lengths


def theirs(world, model, prompts, folder, steps, python):
    """Seconds of each step."""
    task = {"world": asdict(world), "model": str(model), "prompts": str(prompts), "steps": steps}
    file = folder / "task.json"
    file.write_text(json.dumps(task | {"folder": str(folder)}))
    quiet(python, __file__, "--as-trl", file)
    return json.loads((folder / "seconds.json").read_text())


def quiet(*command):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}")


def contains(response, reference, metadata):
    """The reward, for both."""
    return float(str(reference) in response)


def run_trl(file):
    """In TRL's environment: trains, and writes the seconds of each step."""
    import time

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    task = json.loads(file.read_text())
    world = World(**task["world"])
    rows = [json.loads(line) for line in Path(task["prompts"]).read_text().splitlines()]
    marks = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            marks.append(time.perf_counter())

        def on_train_end(self, *_, **__):
            marks.append(time.perf_counter())

    def reward(prompts, completions, answer, **_):
        return [
            contains(response, reference, None)
            for response, reference in zip(completions, answer, strict=True)
        ]

    arguments = GRPOConfig(
        output_dir=str(Path(task["folder"]) / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=world.prompts * world.rollouts,
        num_generations=world.rollouts,
        max_completion_length=world.tokens,
        max_steps=task["steps"],
        learning_rate=1e-6,
        beta=0.0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    GRPOTrainer(
        task["model"],
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        callbacks=[Clock()],
    ).train()
    seconds = [later - earlier for earlier, later in itertools.pairwise(marks)]
    (Path(task["folder"]) / "seconds.json").write_text(json.dumps(seconds))


def compare(name, options):
    world = WORLDS[name]
    times = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(world, Path(folder) / "model")
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(prompts, 4096)
        for repeat in range(options.repeats):
            places = [Path(folder) / f"{side}-{repeat}" for side in times]
            for place in places:
                place.mkdir()
            own, lengths = ours(world, model, prompts, places[0], options.steps)
            times["ours"] += own[WARM_UP:]
            trl = theirs(world, model, prompts, places[1], options.steps, options.trl_python)
            times["trl"] += trl[WARM_UP:]
    medians = {side: statistics.median(values) for side, values in times.items()}
    length = f", {statistics.mean(lengths):.0f} tokens a response" if lengths else ""
    print(
        f"{name}: {medians['ours']:.2f} s a step, TRL {medians['trl']:.2f} s, "
        f"ratio {medians['ours'] / medians['trl']:.2f}{length}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl-python", help="the Python of TRL's environment")
    parser.add_argument("--worlds", default=",".join(WORLDS), help="which to run (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of each run (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each (default %(default)s)")
    parser.add_argument("--as-trl", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_trl:
        return run_trl(options.as_trl)
    if not options.trl_python:
        parser.error("--trl-python is missing: the environment in which TRL is installed")
    for name in options.worlds.split(","):
        compare(name, options)
    return None


if __name__ == "__main__":
    main()
