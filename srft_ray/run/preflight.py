"""Everything that files, models and earlier runs show to be wrong, before anything is started or written."""

import dataclasses
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft_ray.config.resolve import Resolved, TokenLimits
from srft_ray.config.schema import Config, DataSection
from srft_ray.data.plan import StreamPlan, make_plan
from srft_ray.data.prepare import prepare, remove
from srft_ray.data.rows import read_rows
from srft_ray.data.store import Counts, PreparedData
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.errors import UserError, require
from srft_ray.models import check_trainable, load_model_config
from srft_ray.run.directory import check_run_directory
from srft_ray.run.evaluation_checks import check_best_figure
from srft_ray.run.installation import check_installation, check_named_verifier
from srft_ray.train.checkpoint import CheckpointStore
from srft_ray.train.lora import count_adapter_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its config, its data, the plan of its stream, and its checkpoints.

    Attributes:
        train: rows of the training data.
        evaluation: rows of each evaluation set; empty if the run never evaluates.
    """

    resolved: Resolved
    train: PreparedData
    evaluation: dict[str, PreparedData]
    plan: StreamPlan
    store: CheckpointStore


def prepare_run(resolved: Resolved) -> Prepared:
    """Checks model, earlier run and data, and prepares the data.

    Raises:
        UserError: one sentence for the first thing that is wrong. What was prepared for this call is removed.
    """
    config = resolved.config
    check_installation(config, resolved.verifier)
    check_trainable(config.model)
    _check_further_models(resolved, load_model_config(config.model))
    if config.learner.lora.rank:
        count_adapter_parameters(config.model, config.learner.lora)  # it refuses wrong targets
    store = open_store(config)
    check_run_directory(resolved, store)
    plan_stream(resolved, {})  # its errors come before data are prepared
    _check_evaluation(config)
    tokenizer = load_tokenizer(config.model)
    created = list[Path]()
    try:
        train = prepare_data(resolved, config.data, tokenizer, created)
        _check_data(resolved, train.counts)
        evaluation = prepare_evaluation(resolved, tokenizer, created) if resolved.needs_engines else {}
        sizes = evaluation_sizes(resolved, evaluation)
        check_best_figure(config, evaluation, sizes)
    except UserError:
        remove(created)
        raise
    plan = plan_stream(resolved, sizes)
    return Prepared(resolved, train, evaluation, plan, store)


def check_without_model(resolved: Resolved) -> Counts:
    """The checks of `prepare_run` that need no model, for one that is on other machines; what is known of the
    training data without tokens. Errors as there."""
    config, counts = resolved.config, Counts()
    check_run_directory(resolved, open_store(config))
    plan_stream(resolved, {})
    _check_evaluation(config)
    for row in read_rows(config.data, config.run.seed):
        counts.rows = counts.kept = counts.rows + 1
        counts.demonstrations += len(row.demonstrations)
        counts.without_answer += not row.reference
    _check_data(resolved, counts)
    for name, section in resolved.evaluation.items() if resolved.needs_engines else ():
        deque(read_rows(section.data, config.run.seed, _key(resolved, name)), maxlen=0)
    return counts


def open_store(config: Config) -> CheckpointStore:
    """The run's checkpoints. Raises UserError if their storage cannot be reached."""
    return CheckpointStore.of(config.run_dir, config.run.name, config.trainer.checkpoint_path)


def plan_stream(resolved: Resolved, sizes: dict[str, int]) -> StreamPlan:
    """The plan of the run's stream, with so many prompts of each evaluation set; errors as `make_plan`."""
    config = resolved.config
    # Early stopping decides by an evaluation before the update.
    beside = config.rollout.max_staleness > 0 and config.trainer.patience is None
    return make_plan(
        config.trainer,
        resolved.algorithm,
        resolved.learners,
        resolved.engines,
        config.rollout.groups_per_task,
        sizes,
        beside,
        {name: resolved.evaluation[name].samples for name in sizes},
    )


def prepare_data(
    resolved: Resolved,
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    created: list[Path] | None = None,
    limits: TokenLimits | None = None,
    key: str = "data",
) -> PreparedData:
    """Prepares a data set in the folder that runs beside each other share; new paths are added to
    `created`. `limits` are those of the training data by default; `key` is the section's place in the
    config."""
    folder = Path(resolved.config.run.dir) / ".data"
    limits = limits or resolved.token_limits
    return prepare(section, tokenizer, limits, folder, resolved.config.run.seed, created, key)


def prepare_evaluation(
    resolved: Resolved, tokenizer: "PreTrainedTokenizerBase", created: list[Path] | None = None
) -> dict[str, PreparedData]:
    """Checks the verifiers of the sets, and prepares their data."""
    for section in resolved.evaluation.values():
        if section.verifier:
            check_named_verifier(section.judge(resolved.config.verifier))
    prepared = {}
    for name, section in resolved.evaluation.items():
        limits, key = resolved.limits(section.max_new_tokens), _key(resolved, name)
        prepared[name] = prepare_data(resolved, section.data, tokenizer, created, limits, key)
    return prepared


def _key(resolved: Resolved, name: str) -> str:
    """Where the config describes the evaluation set. `srft-ray evaluate` has one, which is the data."""
    same = resolved.evaluation[name].data == resolved.config.data
    return "data" if same else f"evaluation.data.{name}"


def evaluation_sizes(resolved: Resolved, evaluation: dict[str, PreparedData]) -> dict[str, int]:
    """Prompts of each evaluation set that are used."""
    sizes = {}
    for name, data in evaluation.items():
        most = resolved.evaluation[name].max_prompts or data.counts.kept
        sizes[name] = min(data.counts.kept, most)
    return sizes


def _check_further_models(resolved: Resolved, model: Any) -> None:
    """The reference and the critic: what is set is used, and has the model's vocabulary."""
    config, algorithm = resolved.config, resolved.algorithm
    reference, critic = config.learner.reference, config.learner.critic
    require(
        reference is None or algorithm.uses_reference,
        f"learner.reference is set, but no term of {algorithm.name} uses a reference: remove it.",
    )
    require(
        critic is None or algorithm.uses_critic,
        f"learner.critic is set, but {algorithm.name} has no critic: remove it.",
    )
    for key, path in {"learner.reference": reference, "learner.critic": critic}.items():
        if path is None:
            continue
        further = load_model_config(dataclasses.replace(config.model, path=path), key=key)
        require(
            further.vocab_size == model.vocab_size,
            f"{key} {path} has another vocabulary than model.path.",
        )


def _check_evaluation(config: Config) -> None:
    require(
        not (config.trainer.evaluate_every and not config.evaluation.data),
        "trainer.evaluate_every is set, but evaluation.data names no set: add one, such as "
        "evaluation.data.heldout.path=… .",
    )


def _check_data(resolved: Resolved, counts: Counts) -> None:
    config, algorithm = resolved.config, resolved.algorithm
    path, room = config.data.path, config.learner.micro_batch_tokens
    require(
        counts.demonstrations > 0 or not algorithm.uses_demonstrations,
        f"No demonstrations: {algorithm.name} needs them and none of the {counts.kept} rows of {path} has "
        f"one that fits ({counts.overlong_demonstrations} are too long for model.max_length). Set "
        "data.demonstration_field to the field that holds them, or algorithm.name=grpo.",
    )
    require(
        not (algorithm.uses_rollouts and counts.without_answer),
        f"{counts.without_answer} of {counts.kept} rows of {path} have no reference answer, so that "
        "rollouts could not be judged: set data.answer_field.",
    )
    longest_rollout = counts.longest_prompt + config.rollout.max_new_tokens if algorithm.uses_rollouts else 0
    longest_demonstration = counts.longest_demonstration if algorithm.uses_demonstrations else 0
    longest = max(longest_rollout, longest_demonstration)
    require(
        longest <= room,
        f"learner.micro_batch_tokens={room} is below the longest sequence of {longest} tokens: set it to at "
        f"least {longest}.",
    )
