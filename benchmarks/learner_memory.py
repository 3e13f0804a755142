"""Peak memory of a learner that loads, publishes and checkpoints a model under ZeRO 3, on four ranks.

    python benchmarks/learner_memory.py [--ranks 4] [--layers 12] [--dtype bfloat16]

The model is a random Llama, by default with 188 million parameters. Each figure is the peak of the anonymous
memory of the rank that needs most, above what the rank had before: pages of mapped files belong to the page
cache. Before, each rank does the same with a model of 0.2 million parameters, so that the libraries' own
memory is not counted. The C library gives memory that is freed back at once (MALLOC_MMAP_THRESHOLD_), so that
what it keeps for later is not counted either. Linux only. It prints figures in MiB beside their limits:

- loading: 1.25 times the rank's share of the weights, and the largest parameter;
- publication: one piece of the weights, and the largest parameter, which is gathered; what Ray's object store
  holds is not counted;
- checkpoint: two pieces, and the largest parameter.

It also prints for how many seconds a checkpoint keeps the learners from training, written at once and in the
background, where the copy of the state takes memory of its own.
"""

import argparse
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

TINY = Path(__file__).resolve().parents[1] / "examples/tiny/base"
PIECE_MB = 64


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def peak_of(action: Callable[[], object]) -> tuple[float, object]:
    """(most MiB above what there was before, the action's result), sampled every 10 ms."""
    before, peak, done = anonymous_mb(), 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_mb())
            time.sleep(0.01)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        result = action()
    finally:
        done.set()
        sampler.join()
    return peak - before, result


def write_model(folder: Path, layers: int, size: int = 1024) -> tuple[int, int]:
    """(parameters of the model, those of its largest weight)."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32 * size,
        hidden_size=size,
        intermediate_size=size * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    sizes = [parameter.numel() for parameter in model.parameters()]
    return sum(sizes), max(sizes)


def measure(rank: int, ranks: int, port: int, folder: str, dtype: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ["WORLD_SIZE"] = str(ranks)
    torch.set_num_threads(1)
    import deepspeed
    import torch.distributed as dist

    from srft_ray.train import saving

    deepspeed.init_distributed("gloo", verbose=False)
    saving.PIECE_BYTES = PIECE_MB * 2**20
    figures_of(Path(folder, "small"), dtype)
    figures = figures_of(Path(folder, "large"), dtype)
    every: list[dict[str, float]] = [{}] * ranks
    dist.all_gather_object(every, figures)
    if rank == 0:
        worst = {name: max(own[name] for own in every) for name in figures}
        Path(folder, "figures.json").write_text(json.dumps(worst))


def figures_of(folder: Path, dtype: str) -> dict[str, float]:
    """This rank's figures with the model in the folder, by name."""
    from pyarrow import fs
    from transformers import AutoTokenizer

    from srft_ray.config.schema import ModelSection
    from srft_ray.config.training import LearnerSection, TrainerSection
    from srft_ray.sync.fingerprint import FingerprintedWeights
    from srft_ray.sync.pieces import Files, PieceBuffer, Rank, cut
    from srft_ray.train import saving
    from srft_ray.train.background_saving import BackgroundSaver
    from srft_ray.train.checkpoint import CheckpointStore
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.deepspeed_loading import load_for_learner

    learner, number_format = LearnerSection(zero_stage=3), getattr(torch, dtype)
    section, rank = ModelSection(str(folder)), Rank.of_this_process()
    figures = {}
    began = time.monotonic()

    def say(what: str) -> None:
        if rank.number == 0:
            print(f"{folder.name} model, {time.monotonic() - began:.0f} s: {what}", flush=True)

    say("loading")
    figures["loading"], model = peak_of(lambda: load_for_learner(section, learner, number_format))
    figures["optimizer"], engine = peak_of(lambda: DeepSpeedEngine(model, learner, number_format))

    def publish() -> None:
        """What the transports do with the weights, but for putting the pieces into Ray's object store."""
        weights = FingerprintedWeights(engine.tensors.changed(), rank)
        for _ in cut(weights, rank, PieceBuffer(saving.PIECE_BYTES), Files()):
            pass

    say("publication")
    figures["publication"], _ = peak_of(publish)
    say("the first update, without tokens")
    engine._create_optimizer_state()
    out = folder / "run"
    out.mkdir(exist_ok=True)
    store = CheckpointStore(fs.LocalFileSystem(), str(out / "checkpoints"), out)
    saver = saving.Saver(store, TrainerSection(), engine, model, AutoTokenizer.from_pretrained(TINY))
    say("checkpoint")
    started = time.monotonic()
    figures["checkpoint"], saved = peak_of(lambda: saver.save(1, final=False, about={}))
    figures["checkpoint, seconds"] = time.monotonic() - started
    assert saved
    say("checkpoint in the background")
    background = BackgroundSaver(saver, learner.timeout_s)

    def begin() -> None:
        started = time.monotonic()
        background.begin(2, {})
        figures["background, seconds that it keeps"] = time.monotonic() - started
        assert background.settle(wait=True) == 2
        figures["background, seconds until it is complete"] = time.monotonic() - started

    figures["background"], _ = peak_of(begin)
    say("done")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=4, help="learners (default %(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model (default %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # of the ranks
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder, "small"), layers=2, size=64)
        parameters, largest = write_model(Path(folder, "large"), options.layers)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(measure, (options.ranks, port, folder, options.dtype), nprocs=options.ranks)
        figures = json.loads(Path(folder, "figures.json").read_text())
    width = torch.finfo(getattr(torch, options.dtype)).bits / 8 / 2**20
    share, whole = parameters / options.ranks * width, largest * width
    # The state of a checkpoint is gathered in float32.
    limits = {
        "loading": 1.25 * share + whole,
        "publication": PIECE_MB + whole,
        "checkpoint": 2 * PIECE_MB + largest * 4 / 2**20,
    }
    print(f"{parameters / 1e6:.0f} M parameters in {options.dtype}, {options.ranks} ranks; MiB of one rank:")
    print(f"share of the weights {share:.0f}, largest parameter {whole:.0f}, piece {PIECE_MB}")
    for name, peak in figures.items():
        limit = f" (limit {limits[name]:.0f})" if name in limits else ""
        print(f"{name}: {peak:.1f}{limit}")


if __name__ == "__main__":
    main()
