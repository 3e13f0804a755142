"""How training moved the distribution of each token: the paper's figure 2, and by whom and where.

Texts are teacher-forced through the model before training and the one after it. Shares of shifted tokens by
entropy decile of the base model show whether a method moves the tokens at which the base was unsure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from srft_ray.commands.analysis import scoring
from srft_ray.commands.analysis.texts import Text

SHIFTED = 0.1  # change of a token's probability that counts as a shift
DECILES = 10
FIGURES = (
    "delta_logprob",
    "abs_delta_p",
    "js",
    "kl",
    "rank_base",
    "entropy_base",
    "entropy_tuned",
)


def token_table(
    base: Any,
    tuned: Any,
    texts: Sequence[Text],
) -> pa.Table:
    """One row for each token of the texts."""
    columns: dict[str, list[Any]] = {}
    pairs = zip(
        scoring.log_distributions(base, texts),
        scoring.log_distributions(tuned, texts),
        strict=True,
    )
    for number, (before_TV, after_TV) in enumerate(pairs):
        figures = _figures(before_TV, after_TV, texts[number], number)
        for name, values in figures.items():
            columns.setdefault(name, []).extend(values)
    return pa.table(columns)


def _figures(
    before_TV: Tensor,
    after_TV: Tensor,
    text: Text,
    number: int,
) -> dict[str, list[Any]]:
    before_T = scoring.chosen(before_TV, text)
    after_T = scoring.chosen(after_TV, text)
    length = len(text.response_ids)
    return {
        "text": [number] * length,
        "kind": [text.kind] * length,
        "step": [text.step] * length,
        "position": list(range(length)),
        "token": list(text.response_ids),
        "delta_logprob": (after_T - before_T).tolist(),
        "abs_delta_p": (after_T.exp() - before_T.exp()).abs().tolist(),
        "js": scoring.jensen_shannon(before_TV, after_TV).tolist(),
        "kl": scoring.divergence(after_TV, before_TV).tolist(),
        "rank_base": scoring.rank(before_TV, text).tolist(),
        "entropy_base": scoring.entropy(before_TV).tolist(),
        "entropy_tuned": scoring.entropy(after_TV).tolist(),
    }


def summary(tokens: pa.Table) -> list[dict[str, Any]]:
    """Means over tokens: of all, by kind of text, by entropy decile of the base, and by position."""
    values = {name: tokens[name].to_numpy() for name in FIGURES}
    kinds = np.array(tokens["kind"].to_pylist())
    everything = np.ones(len(kinds), dtype=bool)
    found = [_row("all", everything, values)]
    found += [_row(f"kind {kind}", kinds == kind, values) for kind in sorted(set(kinds))]
    deciles = decile(values["entropy_base"])
    found += [_row(f"entropy decile {n + 1}", deciles == n, values) for n in sorted(set(deciles))]
    places = np.minimum(tokens["position"].to_numpy() // 16, 7)
    found += [_row(f"position {16 * n}+", places == n, values) for n in sorted(set(places))]
    return found


def decile(values: np.ndarray) -> np.ndarray:
    """The tenth of the values that each one lies in, 0 to 9; values that are equal share one."""
    edges = np.quantile(values, np.linspace(0, 1, DECILES + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _row(
    group: str,
    chosen: np.ndarray,
    values: dict[str, np.ndarray],
) -> dict[str, Any]:
    shifted = values["abs_delta_p"][chosen] > SHIFTED
    means = {name: float(of_name[chosen].mean()) for name, of_name in values.items()}
    return {
        "tokens of": group,
        "tokens": int(chosen.sum()),
        "share shifted": float(shifted.mean()),
        **means,
    }
