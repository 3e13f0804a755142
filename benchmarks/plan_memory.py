"""A learner's peak memory over what `srft-ray plan` says of it.

    python benchmarks/plan_memory.py [--layers 6] [--hidden 256] [--tokens 512] [--vocabulary 4000]

A random Llama makes two updates of two micro-batches on one rank, in a process for each setting. Peaks are
those of PyTorch's allocator: on a GPU as it counts them, on CPU the sum of what its profiler reports. The
CUDA context is left out, and so is the memory of libraries. Offloaded states are counted on CPU only.
"""

import argparse
import os
from collections.abc import Callable

import torch
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

MIB = 2**20
STAGES = ((0, False, False), (1, False, False), (2, False, False), (2, True, False), (3, False, False))
OFFLOADED = ((2, False, True), (3, False, True))
SETTINGS = [(dtype, *stage) for dtype in ("bfloat16", "float32") for stage in STAGES + OFFLOADED]


def peak_of(action: Callable[[], object]) -> int:
    """Most bytes that PyTorch has allocated at a time."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    most = present = 0
    for _, change in changes:
        present += change
        most = max(most, present)
    return most


def measure(_: int, options: argparse.Namespace, setting: tuple[str, int, bool, bool]) -> None:
    dtype, stage, recomputed, offload = setting
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    os.environ.update(address, RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    torch.set_num_threads(1)
    import deepspeed
    from transformers import LlamaConfig, LlamaForCausalLM

    from srft_ray.config.training import LearnerSection
    from srft_ray.models import prepared_for_training
    from srft_ray.run.memory import LearnerMemory, LearnerSetting
    from srft_ray.run.model_shape import ModelShape
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    cuda = torch.cuda.is_available()
    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    heads = options.hidden // 64
    shapes = {"hidden_size": options.hidden, "intermediate_size": 3 * options.hidden, "head_dim": 64}
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
        **shapes,
    )
    with torch.device("meta"):
        parameters = LlamaForCausalLM(config).num_parameters()
    learner = LearnerSection(
        zero_stage=stage,
        offload_optimizer=offload,
        deepspeed={"zero_optimization": {"reduce_bucket_size": parameters}},
    )
    rows = max(1, options.tokens // 256)
    ids_BL = torch.randint(options.vocabulary, (rows, options.tokens // rows))
    positions = torch.arange(1, ids_BL.shape[1])

    def train() -> None:
        number_format = getattr(torch, dtype)
        torch.set_default_dtype(number_format)
        model = prepared_for_training(LlamaForCausalLM(config), recomputed)
        torch.set_default_dtype(torch.float32)
        engine = DeepSpeedEngine(model, learner, number_format)
        inputs = (
            ids_BL,
            torch.arange(rows).repeat_interleave(len(positions)),
            positions.repeat(rows),
        )
        for _ in range(2):
            for last in (False, True):
                on_device = [tensor.to(engine.device) for tensor in inputs]
                logprobs_N, _ = engine.forward(*on_device, 1.0)
                engine.backward(-logprobs_N.mean(), last=last)
            engine.step(1e-4)

    said = LearnerMemory.of(
        ModelShape.of(config, parameters),
        LearnerSetting(learner, 1, 2 if dtype == "bfloat16" else 4, ids_BL.numel(), recomputed, cuda=cuda),
    )
    measured = peak_of(train)
    expected = said.peak - said.context + (0 if cuda else said.host)
    print(
        f"{dtype}, ZeRO {stage}{', recomputed' if recomputed else ''}{', offloaded' if offload else ''}: "
        f"measured {measured / MIB:,.0f} MiB, said {expected / MIB:,.0f}: {measured / expected:.2f} "
        f"(states {said.states / MIB:,.0f}, activations {said.activations / MIB:,.0f}, "
        f"head {said.head / MIB:,.0f}, buckets {said.buckets / MIB:,.0f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6, help="layers (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="of a micro-batch (default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=4000, help="tokens (default %(default)s)")
    options = parser.parse_args()
    for setting in SETTINGS:
        mp.spawn(measure, (options, setting), nprocs=1)


if __name__ == "__main__":
    main()
