"""What the data of evaluation sets show to be wrong: demonstrations that do not fit, figures that do not
exist."""

from collections.abc import Mapping

from srft_ray.config.schema import Config
from srft_ray.data.store import PreparedData
from srft_ray.errors import nearest, require
from srft_ray.observe.metrics_reference import EVALUATIONS

OF_DEMONSTRATIONS = ("demo_loss", "demo_entropy")


def check_evaluation(config: Config, evaluation: Mapping[str, PreparedData]) -> None:
    """Raises UserError if learners cannot score a set's demonstrations, or a figure of trainer.keep_best is
    never recorded.

    Args:
        evaluation: rows of each set; empty if the run never evaluates.
    """
    room = config.learner.micro_batch_tokens
    for name, data in evaluation.items():
        longest = data.counts.longest_demonstration
        require(
            longest <= room,
            f"learner.micro_batch_tokens={room} is below the longest demonstration of "
            f"evaluation.data.{name}, which has {longest} tokens with its prompt: set it to at least "
            f"{longest}.",
        )
    best = config.trainer.keep_best or ""
    if best.startswith("eval/") and best not in evaluation:
        _check_figure(best, evaluation)


def _check_figure(best: str, evaluation: Mapping[str, PreparedData]) -> None:
    name, _, figure = best.removeprefix("eval/").rpartition("/")
    require(
        name in evaluation,
        f"trainer.keep_best={best} is a figure of the set '{name}', which is not evaluated during training: "
        "add it to evaluation.data and set trainer.evaluate_every.",
    )
    require(figure in EVALUATIONS, f"trainer.keep_best={best}: {nearest(figure, EVALUATIONS)}")
    require(
        figure not in OF_DEMONSTRATIONS or evaluation[name].counts.demonstrations > 0,
        f"trainer.keep_best={best} is of demonstrations, and no row of evaluation.data.{name} has one that "
        f"fits: set evaluation.data.{name}.demonstration_field.",
    )
