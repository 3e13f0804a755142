"""Evaluation of models on disk by the engine and the verifier that training uses."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from algorithms import GRPO
from srft_ray.commands.evaluation_folder import evaluation_folder
from srft_ray.commands.evaluation_sampling import ModelEvaluation, first_missing, sample, write_records
from srft_ray.commands.evaluation_series import series_of_models
from srft_ray.config.load import as_config, to_yaml
from srft_ray.config.resolve import resolve
from srft_ray.config.schema import Config
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import load_model_config
from srft_ray.observe.journal import write_whole
from srft_ray.run.cluster import start_ray
from srft_ray.run.directory import RECORD
from srft_ray.run.installation import check_installation
from srft_ray.run.lock import claimed
from srft_ray.run.placement import Placement, demand
from srft_ray.run.preflight import evaluation_sizes, plan_stream, prepare_evaluation


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was evaluated.

    Attributes:
        folder: holds config.yaml, evaluations.jsonl and the evaluation ledger, as a run directory does.
        records: one for each set: avg@k, pass@k and maj@k in percent with 95 % intervals, lengths, entropy.
    """

    folder: Path
    records: list[dict[str, Any]]


def evaluate(
    config: Config | str | Path,
    *,
    verifier: Callable[..., Any] | None = None,
    folder: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Samples responses for each prompt of each evaluation set; see `evaluate_model`. Returns its records."""
    return evaluate_model(config, verifier=verifier, folder=folder).records


def evaluate_model(
    config: Config | str | Path,
    *,
    verifier: Callable[..., Any] | None = None,
    folder: str | Path | None = None,
) -> Evaluation:
    """Samples responses for each prompt of each evaluation set, and keeps them in an evaluation ledger.

    The same call continues an evaluation that died, and repeats nothing of one that is finished.

    Args:
        config: a config, which is not changed, or the path of a YAML file.
        verifier: as of `fit`.
        folder: where the ledger is written; by default a folder in `run.dir` that is named after the model
            and everything that the result depends on.

    Raises:
        UserError: bad config, model or data; or the folder holds another evaluation.
        RunFailed: the engines do not deliver.
    """
    [done] = _evaluate([_prepare(config, verifier, folder)])
    return done


def evaluate_models(
    configs: Sequence[Config | str | Path], *, verifier: Callable[..., Any] | None = None
) -> list[Evaluation]:
    """Evaluates a model for each config, as `evaluate_model` does.

    Models whose engines differ in nothing but the values of the weights have the same engines, one after
    another; the others have engines of their own.

    Raises:
        UserError: bad config, model or data; before anything is sampled.
        RunFailed: the engines do not deliver.
    """
    return _evaluate([_prepare(config, verifier) for config in configs])


def _prepare(
    config: Config | str | Path,
    verifier: Callable[..., Any] | None,
    folder: str | Path | None = None,
) -> ModelEvaluation:
    resolved = resolve(as_config(config), GRPO(), verifier)
    check_installation(resolved.config, verifier)
    load_model_config(resolved.config.model)
    tokenizer = load_tokenizer(resolved.config.model)
    sets = prepare_evaluation(resolved, tokenizer)
    plan = plan_stream(resolved, evaluation_sizes(resolved, sets))
    # In small blocks, each of which is written when it has ended; several are in flight.
    plan = dataclasses.replace(plan, steps=0, evaluate_every=1, learner_multiple=1, bundles={})
    target = evaluation_folder(resolved, Path(folder) if folder else None)
    return ModelEvaluation(resolved, tokenizer, sets, plan, target)


def _evaluate(models: Sequence[ModelEvaluation]) -> list[Evaluation]:
    by_folder = {model.folder: model for model in models}
    with ExitStack() as locks:
        # The locks are taken before the ledgers are looked at: what is found there stays true.
        for folder, model in by_folder.items():
            locks.enter_context(claimed(folder))
            write_whole(folder / RECORD, to_yaml(model.resolved.config))
        waiting = [
            dataclasses.replace(model, first=first)
            for folder, model in by_folder.items()
            if (first := first_missing(folder, model.plan)) is not None
        ]
        series = series_of_models(waiting)
        if len(series) > 1:
            # One Ray for all of them.
            resolved = waiting[0].resolved
            needed = demand(resolved, Placement("cpu"), engines=True)
            start_ray(resolved.config.cluster, needed.cpus, needed.custom)
        records: dict[Path, list[dict[str, Any]]] = {}
        for part in series:
            records |= zip((model.folder for model in part), sample(part), strict=True)
        for folder, model in by_folder.items():
            if folder not in records:
                records[folder] = write_records(folder, model.plan)
        return [Evaluation(model.folder, records[model.folder]) for model in models]
