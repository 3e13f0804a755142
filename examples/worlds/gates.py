"""Check that the base model of the world "strings" can tell methods apart; a world that cannot is rejected.

python examples/worlds/gates.py MODEL
"""

import argparse
import random
import sys
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from judge import judge
from strings import ALL_BANDS, Problem, distinct
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from srft_ray.observe.stats import pass_at_k

MAX_NEW_TOKENS = 64
BATCH_SIZE = 1024
SEED = 1


@dataclass(frozen=True)
class Gate:
    """What the base model must score on a band.

    Attributes:
        prompts, samples: how many are drawn.
        k: of the pass@k that is checked beside pass@1.
        pass_1, pass_k: least and largest share.
    """

    prompts: int
    samples: int
    k: int
    pass_1: tuple[float, float]
    pass_k: tuple[float, float]
    why: str


GATES = {
    "habit": Gate(64, 16, 16, (0.05, 0.4), (0.7, 1.0), "the skill must be there, and the habit against it"),
    "edge": Gate(48, 64, 64, (0.005, 0.06), (0.5, 1.0), "one of many samples must be right"),
    "missing": Gate(40, 256, 256, (0.0, 0.005), (0.0, 0.05), "no more samples may be right than by chance"),
    "longer": Gate(48, 64, 64, (0.0, 0.01), (0.0, 0.5), "the base model must not have it"),
    "retained": Gate(64, 8, 8, (0.9, 1.0), (0.95, 1.0), "there must be something to forget"),
}


@dataclass(frozen=True)
class Finding:
    """What the base model scores on a band, and whether its gate lets it pass."""

    band: str
    gate: Gate
    pass_1: float
    pass_k: float

    @property
    def passed(self) -> bool:
        inside_1 = self.gate.pass_1[0] <= self.pass_1 <= self.gate.pass_1[1]
        inside_k = self.gate.pass_k[0] <= self.pass_k <= self.gate.pass_k[1]
        return inside_1 and inside_k

    def row(self) -> str:
        """A row of the Markdown table."""
        gate = self.gate
        allowed = f"{_span(gate.pass_1)}; pass@{gate.k} {_span(gate.pass_k)}"
        cells = [
            self.band,
            f"{100 * self.pass_1:.1f} %",
            f"{100 * self.pass_k:.1f} % (k = {gate.k})",
            allowed,
            "passed" if self.passed else f"**failed**: {gate.why}",
        ]
        return f"| {' | '.join(cells)} |"


def _span(limits: tuple[float, float]) -> str:
    low, high = (f"{100 * limit:g}" for limit in limits)
    return f"{low} %" if low == high else f"{low}–{high} %"


def find(band: str, gate: Gate, correct_P: np.ndarray) -> Finding:
    """The finding of a band from the number of right samples of each prompt."""
    samples_P = np.full(len(correct_P), gate.samples)
    pass_1 = float(correct_P.mean() / gate.samples)
    return Finding(band, gate, pass_1, float(pass_at_k(samples_P, correct_P, gate.k).mean()))


@torch.no_grad()
def sample(model: torch.nn.Module, ids_BT: torch.Tensor) -> torch.Tensor:
    """Responses at temperature 1 to prompts of one length."""
    made = model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    return made[:, ids_BT.shape[1] :]


def count_correct(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    samples: int,
) -> np.ndarray:
    """The number of right samples of each problem, ordered by the length of the prompts."""
    counts = []
    for _, same_length in groupby(sorted(problems, key=_length), key=_length):
        group = list(same_length)
        ids_P = [tokenizer(f"{problem.prompt}\n").input_ids for problem in group]
        ids_BT = torch.tensor(ids_P).repeat_interleave(samples, dim=0)
        texts = []
        for part_BT in ids_BT.split(BATCH_SIZE):
            texts += tokenizer.batch_decode(sample(model, part_BT), skip_special_tokens=True)
        for place, problem in enumerate(group):
            own = texts[place * samples : (place + 1) * samples]
            counts.append(sum(judge(text, problem.answer).reward for text in own))
    return np.array(counts, dtype=np.int64)


def _length(problem: Problem) -> int:
    return len(problem.prompt)


def measure(path: Path) -> list[Finding]:
    """The findings of all bands, from samples with a fixed seed."""
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    findings = []
    for band in ALL_BANDS:
        gate = GATES[band]
        problems = list(islice(distinct(band, random.Random(f"gate {band}"), set()), gate.prompts))
        findings.append(find(band, gate, count_correct(model, tokenizer, problems, gate.samples)))
    return findings


def table(findings: list[Finding]) -> str:
    """A Markdown table of the findings."""
    head = "| band | pass@1 | pass@k | allowed: pass@1 | |\n|---|---|---|---|---|"
    return "\n".join([head, *(finding.row() for finding in findings)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="directory of the base model")
    findings = measure(Path(parser.parse_args().model))
    print(table(findings))
    failed = [finding.band for finding in findings if not finding.passed]
    if failed:
        print(f"The world is rejected: the base model fails at {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
