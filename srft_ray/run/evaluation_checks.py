"""Whether the figure that decides which checkpoint is the best is ever recorded."""

from collections.abc import Mapping

from srft_ray.config.schema import Config
from srft_ray.data.store import PreparedData
from srft_ray.errors import nearest, require
from srft_ray.observe.metrics_reference import EVALUATIONS

OF_DEMONSTRATIONS = ("demo_loss", "demo_entropy")


def check_best_figure(
    config: Config, evaluation: Mapping[str, PreparedData], sizes: Mapping[str, int]
) -> None:
    """Raises UserError if trainer.keep_best is a figure of evaluations that no evaluation has.

    Args:
        evaluation: rows of each set; empty if the run never evaluates.
        sizes: of how many of them a set uses the first.
    """
    best = config.trainer.keep_best or ""
    if not best.startswith("eval/") or best in evaluation:
        return
    name, _, figure = best.removeprefix("eval/").rpartition("/")
    require(
        name in evaluation,
        f"trainer.keep_best={best} is a figure of the set '{name}', which is not evaluated during training: "
        "add it to evaluation.data and set trainer.evaluate_every.",
    )
    require(figure in EVALUATIONS, f"trainer.keep_best={best}: {nearest(figure, EVALUATIONS)}")
    rows = range(sizes[name])
    require(
        figure not in OF_DEMONSTRATIONS or any(evaluation[name].row(row)["demonstrations"] for row in rows),
        f"trainer.keep_best={best} is of demonstrations, and no prompt of evaluation.data.{name} has one "
        f"that fits: set evaluation.data.{name}.demonstration_field.",
    )
