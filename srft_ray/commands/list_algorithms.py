"""Describes the algorithms, from their classes: `srft-ray algorithms` and docs/algorithms.md."""

import dataclasses
import inspect
from typing import Any

from algorithms import REGISTRY, Algorithm, Schedule, Term
from algorithms.term import one
from algorithms.uses import USES
from srft_ray.errors import nearest, require

HEADER = """# Algorithms

This page is generated from the classes in `algorithms/` by `srft-ray algorithms --markdown`; a test keeps it
current.

A loss is a sum of terms. Each term is the sum of `weight · loss` over the tokens it selects, divided by a
count over the whole update, so that the update does not depend on micro-batches, ranks or ZeRO stage. π is
the policy, sg() stops the gradient, Â is the advantage, H is the entropy in nats. If an algorithm samples
rollouts, log-probs and entropies are those of the logits divided by rollout.temperature, for demonstrations
too; otherwise they are those of the logits.

π_old is the learner's policy before the updates of a step (`old: learner`, as in papers and their codes), or
has the engine's log-probs (`old: behavior`, the default of `grpo`, which corrects for stale rollouts). In
bfloat16 the engine's log-probs differ from the learner's, so that with `behavior` a clip acts on numerical
noise too; with `learner`, stale rollouts need `correction`. What a class calls unknown or a choice was not
found in its paper or code.
"""

OVERVIEW = "| name | summary | paper |\n|---|---|---|"
PROPERTIES = """## Properties

- **prefix**: rollouts may continue the beginning of a demonstration.
- **reference**: a frozen model is needed, which costs its memory and one more forward pass.
- **π_old**: a ratio to an earlier policy corrects for several updates per step (`learner.mini_batches`); the
  others are on-policy in the first update only.
- **step**: a term looks at all sequences of the step: their rewards and lengths, or also their log-probs,
  which costs one more forward pass for each update.
- **history**: prompts are chosen by what happened to them in earlier steps; a checkpoint holds it. With
  "replay", it also holds rollouts of these steps, which every learner keeps in memory.
- **refills**: groups from which nothing can be learned are replaced.
- **critic**: a second model is trained, which costs about the memory and time of the policy's training.

| name | rollouts | demonstrations | prefix | reference | π_old | step | history | refills | critic \
| when to use it |
|---|---|---|---|---|---|---|---|---|---|---|"""
ABSENT = """## Not here, and why

| method | reason |
|---|---|
| VAPO (arXiv 2504.05118) | the critic is not trained alone at first, and λ is one number for all lengths |
| SASR (arXiv 2505.13026) | its switch needs the last gradient norm; the formula is known from memory only |
| BRIDGE (arXiv 2509.06948), SD-LoRA (arXiv 2501.13198) | two groups of parameters: adapters are not trained \
apart |
| SFT with other f-divergences (arXiv 2507.00018), TAPO | their formulas are not public |
| load-balancing and router losses of mixture-of-experts models | no such model is trained here |
| latent variables for RL (arXiv 2212.08765) | it represents a transition model, and text has none |
| several data sets in one step (CHORD's own SFT set, stages with data of their own) | one stream of prompts |
| rewards of each token | verifiers judge whole responses |
"""
TERMS = "| algorithm | term | tokens | loss | weight | divided by |\n|---|---|---|---|---|---|"


def describe(name: str | None) -> str:
    """All algorithms in three lines each, or one with its equations, settings and terms.

    Raises:
        UserError: there is no algorithm of this name.
    """
    if name is None:
        return "\n\n".join(_brief(cls()) for cls in REGISTRY.values())
    require(name in REGISTRY, f"Unknown algorithm {name!r}: {nearest(name, REGISTRY)}")
    algorithm = REGISTRY[name]()
    title = f"{name}  ({algorithm.paper})"
    settings = f"settings: {_settings(algorithm)}"
    terms = _table([("term", "tokens", "loss", "weight", "divided by"), *_term_rows(algorithm)])
    return "\n\n".join([title, _document(algorithm), f"use: {USES[name]}", settings, terms])


def markdown() -> str:
    """The text of docs/algorithms.md."""
    algorithms = [cls() for cls in REGISTRY.values()]
    overview = [OVERVIEW, *map(_overview_row, algorithms)]
    terms = [TERMS]
    for algorithm in algorithms:
        terms += [_row(algorithm.name, *map(_code, cells)) for cells in _term_rows(algorithm)]
    sections = map(_section, algorithms)
    properties = [PROPERTIES, *map(_properties_row, algorithms)]
    return "\n".join(
        [HEADER, *overview, "", *properties, "", "## How they differ", "", *terms, "", ABSENT, *sections]
    )


def _overview_row(algorithm: Algorithm) -> str:
    link = f"[`{algorithm.name}`](#{algorithm.name})"
    summary = _summary(algorithm).replace("|", "\\|")
    return _row(link, summary, algorithm.paper)


def _properties_row(algorithm: Algorithm) -> str:
    """What the class declares, and the labels of its terms show."""
    methods = {stage.algorithm for stage in (algorithm.stage(0, 2), algorithm.stage(1, 2))}
    labels = [part for method in methods for term in method.terms() for part in _term_row(term)]
    needs = algorithm.needs
    step = "log-probs" if "sequence_logprobs" in needs else _yes("values" in needs or "mean_entropy" in needs)
    cells = (
        _yes(algorithm.uses_rollouts),
        _yes(algorithm.uses_demonstrations),
        _yes(any(type(method).prefix is not Algorithm.prefix for method in methods)),
        _yes(algorithm.uses_reference),
        _yes(any("ratio(" in label for label in labels)),
        step,
        "replay" if algorithm.replay_age else _yes(algorithm.uses_history),
        _yes(any(method.max_refills for method in methods)),
        _yes(algorithm.uses_critic),
    )
    return _row(f"`{algorithm.name}`", *cells, USES[algorithm.name])


def _section(algorithm: Algorithm) -> str:
    text = f"```text\n{_document(algorithm)}\n```"
    source = f"Source: {algorithm.paper}. Use: {USES[algorithm.name]} Settings: {_settings(algorithm, '`')}"
    return f"## {algorithm.name}\n\n{text}\n{source}\n"


def _brief(algorithm: Algorithm) -> str:
    indent = "\n" + " " * 23
    first = f"{algorithm.name:<22} {_summary(algorithm)}"
    return indent.join([first, algorithm.paper, _settings(algorithm)])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _code(text: str) -> str:
    return f"`{text}`"


def _document(algorithm: Algorithm) -> str:
    return inspect.cleandoc(type(algorithm).__doc__ or "")


def _summary(algorithm: Algorithm) -> str:
    return _document(algorithm).splitlines()[0]


def _yes(value: bool) -> str:
    return "yes" if value else "–"


def _settings(algorithm: Algorithm, quote: str = "") -> str:
    values = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm)}
    shown = [f"{quote}{name}={_value(value)}{quote}" for name, value in values.items()]
    return ", ".join(shown) or "none"


def _value(value: Any) -> str:
    if isinstance(value, Algorithm):
        return value.name
    if isinstance(value, Schedule):
        given = {name: v for name, v in dataclasses.asdict(value).items() if v is not None}
        return "{" + ", ".join(f"{name}: {v}" for name, v in given.items()) + "}"
    return str(value)


def _term_rows(algorithm: Algorithm) -> list[tuple[str, ...]]:
    """One row per term: its name, tokens, loss, weight and denominator."""
    first = algorithm.stage(0, 2).algorithm
    second = algorithm.stage(1, 2).algorithm
    if first is algorithm:
        return [_term_row(term) for term in algorithm.terms()]
    rows = [(f"first: {name}", *cells) for name, *cells in _term_rows(first)]
    return rows + [(f"second: {name}", *cells) for name, *cells in _term_rows(second)]


def _term_row(term: Term) -> tuple[str, ...]:
    weight = "1" if term.weight is one else term.weight.__name__
    return (term.name, term.select.__name__, term.loss.__name__, weight, _denominator(term))


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
    """The rows as text, in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
