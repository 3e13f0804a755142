"""Log-probs and entropies of a large vocabulary never hold the full logits."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/logprob_memory.py"


def test_peak_memory_is_at_most_a_quarter_of_full_logits_with_softmax():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["full_logits_and_softmax_mb"] == 2374
    assert figures["ratio"] <= 0.25
    assert figures["largest_difference"] <= 1e-5
