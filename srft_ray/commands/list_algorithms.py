"""What algorithms there are, from their classes: `srft-ray algorithms` and docs/algorithms.md."""

import dataclasses
import inspect
from typing import Any

from algorithms import REGISTRY, Algorithm, Schedule, Term
from algorithms.term import one
from srft_ray.errors import nearest, require

HEADER = """# Algorithms

Made from the classes in `algorithms/` by `srft-ray algorithms --markdown`; a test keeps it so.

A loss is a sum of terms. Each term sums `weight · loss` over the tokens it selects and divides by a count over the whole
update, so that the update does not depend on micro-batches, ranks or ZeRO stage. π is the policy, sg() has no gradient,
Â is the advantage, H the entropy in nats. Where an algorithm samples rollouts, log-probs and entropies are those of
logits divided by rollout.temperature, for demonstrations too; where it does not, of the logits.
"""


def describe(name: str | None) -> str:
    """All algorithms in a few lines each, or one with its equations, settings and terms. UserError: no such algorithm."""
    if name is None:
        return "\n\n".join(_brief(cls()) for cls in REGISTRY.values())
    require(name in REGISTRY, f"Unknown algorithm {name!r}: {nearest(name, REGISTRY)}")
    algorithm = REGISTRY[name]()
    rows = _table([("term", "tokens", "loss", "weight", "divided by"), *_term_rows(algorithm)])
    return "\n".join(
        [
            f"{name}  ({algorithm.paper})",
            "",
            _document(algorithm),
            "",
            f"settings: {_settings(algorithm)}",
            "",
            rows,
        ]
    )


def markdown() -> str:
    """docs/algorithms.md."""
    algorithms = [cls() for cls in REGISTRY.values()]
    overview = [
        "| name | | paper | rollouts | demonstrations |",
        "|---|---|---|---|---|",
        *(
            f"| [`{a.name}`](#{a.name}) | {_cell(_summary(a))} | {a.paper} | {_yes(a.uses_rollouts)} | {_yes(a.uses_demonstrations)} |"
            for a in algorithms
        ),
    ]
    terms = [
        "| algorithm | term | tokens | loss | weight | divided by |",
        "|---|---|---|---|---|---|",
        *(
            f"| {a.name} | " + " | ".join(f"`{cell}`" for cell in row) + " |"
            for a in algorithms
            for row in _term_rows(a)
        ),
    ]
    sections = [
        f"## {a.name}\n\n```text\n{_document(a)}\n```\nSource: {a.paper}. Settings: {_settings(a, '`')}\n"
        for a in algorithms
    ]
    return "\n".join([HEADER, *overview, "", "## How they differ", "", *terms, "", *sections])


def _brief(algorithm: Algorithm) -> str:
    return f"\n{'':<22} ".join(
        (f"{algorithm.name:<22} {_summary(algorithm)}", algorithm.paper, _settings(algorithm))
    )


def _document(algorithm: Algorithm) -> str:
    return inspect.cleandoc(type(algorithm).__doc__ or "")


def _summary(algorithm: Algorithm) -> str:
    return _document(algorithm).splitlines()[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _yes(value: bool) -> str:
    return "yes" if value else "–"


def _settings(algorithm: Algorithm, quote: str = "") -> str:
    return (
        ", ".join(
            f"{quote}{f.name}={_value(getattr(algorithm, f.name))}{quote}"
            for f in dataclasses.fields(algorithm)
        )
        or "none"
    )


def _value(value: Any) -> str:
    if isinstance(value, Algorithm):
        return value.name
    if isinstance(value, Schedule):
        return (
            "{"
            + ", ".join(
                f"{f.name}: {v}"
                for f in dataclasses.fields(value)
                if (v := getattr(value, f.name)) is not None
            )
            + "}"
        )
    return str(value)


def _term_rows(algorithm: Algorithm) -> list[tuple[str, ...]]:
    first, last = algorithm.stage(0, 2).algorithm, algorithm.stage(1, 2).algorithm
    if first is not algorithm:
        return [
            (f"{which}: {term}", *rest)
            for which, stage in (("first", first), ("second", last))
            for term, *rest in _term_rows(stage)
        ]
    return [
        (
            t.name,
            t.select.__name__,
            t.loss.__name__,
            "1" if t.weight is one else t.weight.__name__,
            _denominator(t),
        )
        for t in algorithm.terms()
    ]


def _denominator(term: Term) -> str:
    population = (term.population or term.select).__name__
    return {
        "token_mean": f"tokens of {population}",
        "sequence_mean_token_sum": f"sequences of {population}",
        "sequence_mean_token_mean": f"sequences of {population} · own length",
        "sequence_mean_constant": f"sequences of {population} · max_new_tokens",
        "constant": f"{term.constant}",
    }[term.norm]


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
