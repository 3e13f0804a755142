"""How the policy moved over its checkpoints, on a probe set that is fixed at the first step.

The negative log-likelihood of demonstrations and of own right and wrong responses shows what an update does
to other responses (arXiv 2407.10490). The distance to a reference model is the mean KL(policy‖reference) over
the tokens of the probe set, as in the paper's appendix E for any number of references.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from srft_ray.commands.analysis import scoring
from srft_ray.commands.analysis.texts import KINDS, Text


def dynamics(
    checkpoints: Mapping[int, Path | str], references: Mapping[str, Any], probes: Sequence[Text]
) -> list[dict[str, Any]]:
    """One row for each checkpoint and kind of text.

    Args:
        checkpoints: model directories by step.
        references: loaded models by name.
    """
    known = {name: list(scoring.log_distributions(model, probes)) for name, model in references.items()}
    rows: list[dict[str, Any]] = []
    for step, path in sorted(checkpoints.items()):
        scored = scoring.log_distributions(scoring.load(path), probes)
        found = []
        for number, log_TV in enumerate(scored):
            beside = {name: distributions[number] for name, distributions in known.items()}
            found.append(_measure(log_TV, probes[number], beside))
        rows += _by_kind(step, probes, found)
    return rows


def _measure(
    log_TV: Tensor,
    text: Text,
    references: Mapping[str, Tensor],
) -> dict[str, float]:
    """Sums over the tokens of a text."""
    sums = {
        "tokens": float(len(text.response_ids)),
        "nll": -float(scoring.chosen(log_TV, text).sum()),
        "entropy": float(scoring.entropy(log_TV).sum()),
    }
    for name, reference_TV in references.items():
        sums[f"KL to {name}"] = float(scoring.divergence(log_TV, reference_TV).sum())
    return sums


def _by_kind(
    step: int,
    probes: Sequence[Text],
    found: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Means over the tokens of all texts of a kind."""
    rows = []
    for kind in KINDS:
        chosen = [sums for text, sums in zip(probes, found, strict=True) if text.kind == kind]
        if not chosen:
            continue
        tokens = sum(sums["tokens"] for sums in chosen)
        names = [name for name in chosen[0] if name != "tokens"]
        means = {name: sum(sums[name] for sums in chosen) / tokens for name in names}
        rows.append({"step": step, "kind": kind, "texts": len(chosen), **means})
    return rows
