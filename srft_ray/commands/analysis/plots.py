"""The plots of `srft-ray analyze`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]


def draw(found: Mapping[str, Rows], folder: Path) -> None:
    """One picture for each table that has a plot and is not empty."""
    from matplotlib.figure import Figure

    for name, plot in PLOTS.items():
        rows = found.get(name)
        if not rows:
            continue
        figure = Figure(figsize=(10, 4), layout="constrained")
        plot(figure.subplots(1, 2), rows)
        figure.savefig(folder / f"{name}.png", dpi=120)


def _token_shift(axes: Sequence["Axes"], rows: Rows) -> None:
    for place, prefix in enumerate(("kind ", "entropy decile ")):
        chosen = [row for row in rows if row["tokens of"].startswith(prefix)]
        names = [row["tokens of"].removeprefix(prefix) for row in chosen]
        axes[place].bar(names, _column(chosen, "share shifted"))
        axes[place].set(xlabel=prefix.strip(), ylabel="share of tokens with |Δp| > 0.1")


def _dynamics(axes: Sequence["Axes"], rows: Rows) -> None:
    distances = [name for name in rows[0] if name.startswith("KL to ")]
    for kind in _different(rows, "kind"):
        chosen = _where(rows, "kind", kind)
        steps = _column(chosen, "step")
        axes[0].plot(
            steps,
            _column(chosen, "nll"),
            "o-",
            label=kind,
        )
        for name in distances:
            axes[1].plot(
                steps,
                _column(chosen, name),
                "o-",
                label=f"{kind}: {name}",
            )
    axes[0].set(xlabel="optimizer step", ylabel="negative log-likelihood, nats per token")
    axes[1].set(xlabel="optimizer step", ylabel="KL(policy‖reference), nats per token")
    _legends(axes)


def _curves(axes: Sequence["Axes"], rows: Rows) -> None:
    for label in _different(rows, "sequences of"):
        chosen = _where(rows, "sequences of", label)
        steps = _column(chosen, "step")
        axes[0].plot(steps, _column(chosen, "length p50"), label=label)
        surprises = [(row["step"], row["surprise"]) for row in chosen if row["surprise"] is not None]
        if surprises:
            axes[1].plot(*zip(*surprises, strict=True), label=label)
    axes[0].set(xlabel="optimizer step", ylabel="median length, tokens")
    axes[1].set(xlabel="optimizer step", ylabel="−log-prob of the engine, nats per token")
    _legends(axes)


def _term_weights(axes: Sequence["Axes"], rows: Rows) -> None:
    for term in _different(rows, "term"):
        chosen = _where(rows, "term", term)
        steps = _column(chosen, "step")
        axes[0].plot(steps, _column(chosen, "p50"), label=term)
        axes[0].fill_between(
            steps,
            _column(chosen, "p10"),
            _column(chosen, "p90"),
            alpha=0.2,
        )
        axes[1].plot(steps, [row["p90"] - row["p10"] for row in chosen], label=term)
    axes[0].set(xlabel="optimizer step", ylabel="weight: median, 10 % to 90 %")
    axes[1].set(xlabel="optimizer step", ylabel="weight: spread from 10 % to 90 %")
    _legends(axes)


def _gradients(axes: Sequence["Axes"], rows: Rows) -> None:
    for term in _different(rows, "term"):
        chosen = _where(rows, "term", term)
        steps = _column(chosen, "checkpoint")
        axes[0].plot(steps, _column(chosen, "norm"), "o-", label=term)
        cosines = [(row["checkpoint"], row["cosine with all terms"]) for row in chosen]
        known = [point for point in cosines if point[1] is not None]
        if known and term != "all terms":
            axes[1].plot(*zip(*known, strict=True), "o-", label=term)
    axes[0].set(xlabel="optimizer step", ylabel="norm of the gradient")
    axes[1].set(xlabel="optimizer step", ylabel="cosine with the sum of all terms", ylim=(-1.05, 1.05))
    _legends(axes)


def _pass_at_k(axes: Sequence["Axes"], rows: Rows) -> None:
    first = min(row["step"] for row in rows)
    last = max(row["step"] for row in rows)
    for place, step in enumerate((first, last)):
        for name in _different(rows, "set"):
            chosen = [row for row in rows if row["set"] == name and row["step"] == step]
            ks = _column(chosen, "k")
            axes[place].plot(
                ks,
                _column(chosen, "pass"),
                "o-",
                label=name.replace("$", r"\$"),
            )
            low = _column(chosen, "low")
            high = _column(chosen, "high")
            axes[place].fill_between(
                ks,
                low,
                high,
                alpha=0.2,
            )
        axes[place].set(
            xlabel="k",
            ylabel=f"pass@k after step {step}, %",
            xscale="log",
            ylim=(0, 101),
        )
    _legends(axes)


def _accuracy_by_cost(axes: Sequence["Axes"], rows: Rows) -> None:
    for name in _different(rows, "set"):
        chosen = _where(rows, "set", name)
        accuracy = _column(chosen, "avg")
        label = name.replace("$", r"\$")
        axes[0].plot(
            _column(chosen, "tokens trained"),
            accuracy,
            "o-",
            label=label,
        )
        axes[1].plot(
            _column(chosen, "TFLOPs"),
            accuracy,
            "o-",
            label=label,
        )
    axes[0].set(xlabel="tokens trained on", ylabel="avg@k, %")
    axes[1].set(xlabel="TFLOPs", ylabel="avg@k, %")
    _legends(axes)


def _weights(axes: Sequence["Axes"], rows: Rows) -> None:
    layers = [row for row in rows if row["weights of"].startswith("layer ")]
    kinds = [row for row in rows if row not in layers]
    for place, chosen in enumerate((kinds, layers)):
        names = _column(chosen, "weights of")
        axes[place].barh(names, _column(chosen, "relative change"))
        axes[place].set(xlabel="relative change (Frobenius)")
        axes[place].tick_params(labelsize="x-small")


def _column(rows: Rows, key: str) -> list[Any]:
    return [row[key] for row in rows]


def _where(
    rows: Rows,
    key: str,
    value: Any,
) -> Rows:
    return [row for row in rows if row[key] == value]


def _different(rows: Rows, key: str) -> list[Any]:
    """The values of a column in the order in which they appear."""
    return list(dict.fromkeys(_column(rows, key)))


def _legends(axes: Sequence["Axes"]) -> None:
    for one in axes:
        one.grid(alpha=0.3)
        if one.get_legend_handles_labels()[0]:
            one.legend(fontsize="x-small")


PLOTS: dict[str, Callable[[Sequence["Axes"], Rows], None]] = {
    "token_shift": _token_shift,
    "dynamics": _dynamics,
    "curves": _curves,
    "term_weights": _term_weights,
    "gradients": _gradients,
    "pass_at_k": _pass_at_k,
    "accuracy_by_cost": _accuracy_by_cost,
    "weights": _weights,
}
