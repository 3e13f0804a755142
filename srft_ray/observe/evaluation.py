"""The figures of an evaluation set, computed from its rows in the evaluation ledger."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srft_ray.observe import intervals, stats

CORRECT_ABOVE = 0.5  # rewards above it count as correct
UNJUDGED = ("timeout", "error")  # verdicts that are not about the response
FIGURE_COLUMNS = (
    "prompt_id",
    "reward",
    "verdict",
    "answer",
    "finish_reason",
    "response_ids",
    "logprobs",
)


@dataclass(frozen=True)
class Outcomes:
    """What figures are made of: one entry for each sample, ordered by prompt.

    Attributes:
        prompt: number of the sample's prompt, from 0, in the order of `prompt_ids`.
        prompt_ids: the different prompts.
        surprise: minus the sum of the log-probs of the sample's tokens, in nats.
    """

    prompt: np.ndarray
    prompt_ids: np.ndarray
    rewards: np.ndarray
    verdicts: list[str]
    answers: list[str | None]
    truncated: np.ndarray
    lengths: np.ndarray
    surprise: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Outcomes":
        """From a table of the evaluation ledger with at least the columns FIGURE_COLUMNS."""
        prompt_ids, prompt = np.unique(table["prompt_id"].to_numpy(), return_inverse=True)
        lengths = pc.list_value_length(table["response_ids"]).fill_null(0).to_numpy()
        return cls(
            prompt,
            prompt_ids,
            table["reward"].to_numpy(),
            table["verdict"].to_pylist(),
            table["answer"].to_pylist(),
            np.array([reason == "length" for reason in table["finish_reason"].to_pylist()]),
            lengths,
            # Tokens that an environment wrote have none.
            -np.array(
                [sum(value or 0.0 for value in given or ()) for given in table["logprobs"].to_pylist()]
            ),
        )

    @property
    def correct(self) -> np.ndarray:
        return self.rewards > CORRECT_ABOVE

    @property
    def samples(self) -> np.ndarray:
        """Of each prompt."""
        return np.bincount(self.prompt)

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean of each prompt's samples."""
        sums = np.bincount(self.prompt, weights=values)
        return sums / self.samples

    def pass_rates(self, k: int) -> np.ndarray:
        """The unbiased pass@k of each prompt."""
        correct = np.bincount(self.prompt, weights=self.correct)
        return stats.pass_at_k(self.samples, correct, k)

    def majorities(self) -> np.ndarray:
        """Of each prompt, the chance that the most frequent answer of its samples is right."""
        first = np.searchsorted(self.prompt, np.arange(len(self.prompt_ids) + 1))
        spans = itertools.pairwise(first)
        found = [stats.majority(self.answers[a:b], self.rewards[a:b], CORRECT_ABOVE) for a, b in spans]
        return np.array(found)


def evaluation_record(
    name: str,
    step: int,
    table: pa.Table,
) -> dict[str, Any]:
    """The line of evaluations.jsonl of a set after `step` optimizer steps.

    avg@k, pass@k and maj@k are in percent. `avg_interval` and `pass_interval` are 1.96 standard errors over
    prompts; `_low` and `_high` are those of `intervals.mean_interval`, which hold for few prompts too.
    The entropy is minus the mean log-prob of the sampled tokens, in nats: an estimate at the evaluation's
    temperature.
    """
    found = Outcomes.of(table)
    averages = found.means(found.rewards)
    passes = found.means(found.correct) > 0
    tokens = int(found.lengths.sum())
    return {
        "step": step,
        "set": name,
        "prompts": len(found.prompt_ids),
        "samples": int(found.samples.max()),
        **_figure("avg", averages),
        **_figure("pass", passes.astype(float)),
        "maj": 100.0 * float(found.majorities().mean()),
        "length": tokens / len(found.rewards),
        "length_correct": _mean_length(found, found.correct),
        "length_wrong": _mean_length(found, ~found.correct),
        "truncated": float(found.truncated.mean()),
        "unanswered": _share(found.verdicts, ("no_answer",)),
        "unjudged": _share(found.verdicts, UNJUDGED),
        "entropy": float(found.surprise.sum()) / max(1, tokens),
    }


def evaluation_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """What loggers get of a line of evaluations.jsonl."""
    name = record["set"]
    shown = {
        f"eval/{name}/avg@{record['samples']}": record["avg"],
        f"eval/{name}/entropy": record["entropy"],
    }
    of_demonstrations = ("demo_loss", "demo_entropy")
    return shown | {f"eval/{name}/{key}": record[key] for key in of_demonstrations if key in record}


def _figure(name: str, shares: np.ndarray) -> dict[str, float]:
    """A mean over prompts in percent, with its intervals."""
    low, high = intervals.mean_interval(shares)
    return {
        name: 100.0 * float(shares.mean()),
        f"{name}_interval": 100.0 * _half_width(shares),
        f"{name}_low": 100.0 * low,
        f"{name}_high": 100.0 * high,
    }


def _half_width(values: np.ndarray) -> float:
    """1.96 standard errors of the mean. Samples of one prompt depend on each other: prompts are the units."""
    if len(values) < 2:
        return float("nan")
    return 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))


def _mean_length(found: Outcomes, chosen: np.ndarray) -> float | None:
    """Mean length of the chosen samples in tokens; None if there are none."""
    return float(found.lengths[chosen].mean()) if chosen.any() else None


def _share(verdicts: Sequence[str], counted: Sequence[str]) -> float:
    return sum(verdict in counted for verdict in verdicts) / len(verdicts)
