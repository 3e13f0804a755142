"""Peak memory of chunked log-probs and entropies, divided by that of full float32 logits and their softmax.

    python benchmarks/logprob_memory.py [--vocabulary 151936] [--tokens 2048]

Forward and backward passes are measured. Values and gradients are compared with the unchunked computation as
well. Linux only: the peak is VmHWM of this process.
"""

import argparse
import json
from pathlib import Path

import torch

from srft_ray.config.training import LearnerSection
from srft_ray.train.logprobs import chunked_logprobs


def peak_mb() -> float:
    return (
        next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        / 1024
    )


def reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def compute(head, hidden, targets, chunk_mb):
    head.weight.grad = None
    hidden = hidden.clone().requires_grad_()
    logprobs, entropies = chunked_logprobs(head, hidden, targets, 0.7, chunk_mb)
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    return logprobs.detach(), entropies, hidden.grad, head.weight.grad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vocabulary", type=int, default=151_936, help="tokens of the vocabulary (default %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=2048, help="response tokens of a batch (default %(default)s)"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    head = torch.nn.Linear(64, options.vocabulary, bias=False)
    hidden, targets = torch.randn(options.tokens, 64), torch.randint(0, options.vocabulary, (options.tokens,))
    compute(head, hidden[:8], targets[:8], 1)
    before = reset_peak()
    chunked = compute(head, hidden, targets, LearnerSection().logit_chunk_mb)
    peak = peak_mb() - before
    full = 2 * options.tokens * options.vocabulary * 4 / 2**20
    gaps = [
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(chunked, compute(head, hidden, targets, 10**6), strict=True)
    ]
    print(
        json.dumps(
            {
                "peak_mb": round(peak),
                "full_logits_and_softmax_mb": round(full),
                "ratio": round(peak / full, 3),
                "largest_difference": max(gaps),
            }
        )
    )


if __name__ == "__main__":
    main()
