"""Everything that files, models and earlier runs show to be wrong, before anything is started or written."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import cloudpickle

from srft_ray.config.resolve import PYTHON_VERIFIER, Resolved, TokenLimits
from srft_ray.config.schema import Config, DataSection, VerifierSection
from srft_ray.data.plan import StreamPlan, make_plan
from srft_ray.data.prepare import prepare, remove
from srft_ray.data.store import Counts, PreparedData
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.errors import UserError, first_line, require
from srft_ray.models import check_trainable, load_model_config
from srft_ray.observe.loggers import check_loggers
from srft_ray.rollout.engine_settings import check_arguments
from srft_ray.rollout.vllm_engine import engine_arguments
from srft_ray.run.directory import check_run_directory
from srft_ray.run.evaluation_checks import check_best_figure
from srft_ray.sync.transports import transport_class
from srft_ray.train.checkpoint import CheckpointStore
from srft_ray.train.deepspeed_config import check_deepspeed_settings
from srft_ray.train.lora import count_adapter_parameters
from srft_ray.verify import resolve as resolve_verifier
from srft_ray.verify.verifier import ENVIRONMENT

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
    require(
        not (config.trainer.evaluate_every and not config.evaluation.data),
        "trainer.evaluate_every is set, but evaluation.data names no set: add one, such as "
        "evaluation.data.heldout.path=… .",
    )
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


def check_installation(config: Config, verifier: Callable[..., Any] | None = None) -> None:
    """Raises UserError unless the verifier, the transport and the loggers that the config names can be used
    here."""
    if verifier is None:
        _check_named_verifier(config.verifier)
    else:
        _check_python_verifier(verifier)
    if config.rollout.environment:
        resolve_verifier(ENVIRONMENT, config.rollout.environment)
    transport_class(config.rollout.transport)
    check_loggers(config.run.loggers)
    check_deepspeed(version("deepspeed"))
    check_deepspeed_settings(config.learner.deepspeed)
    check_arguments(config.rollout.engine, engine_arguments)


def _check_named_verifier(section: VerifierSection) -> None:
    require(
        not section.name.startswith(PYTHON_VERIFIER),
        f"verifier.name is {section.name}, a verifier that was given from Python: call fit(config, "
        "verifier=…), or set verifier.name or verifier.path.",
    )
    resolve_verifier(section.name, section.path)


def _check_python_verifier(verifier: Callable[..., Any]) -> None:
    resolve_verifier("", function=verifier)
    try:
        cloudpickle.dumps(verifier)
    except Exception as error:
        raise UserError(
            f"The verifier cannot be sent to other processes ({first_line(error)}): let it use no lock, open "
            "file or connection of this process."
        ) from error


def check_deepspeed(installed: str) -> None:
    """Releases before 0.19 silently lose gradients (DeepSpeed #7967, #7981)."""
    release = tuple(int(part) for part in installed.split(".")[:2])
    require(
        release >= (0, 19),
        f"DeepSpeed {installed} loses gradients with ZeRO-1/2 and optimizer offload: install "
        "deepspeed>=0.19.",
    )


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
            _check_named_verifier(section.judge(resolved.config.verifier))
    prepared = {}
    for name, section in resolved.evaluation.items():
        limits = resolved.limits(section.max_new_tokens)
        # `srft-ray evaluate` has one set, which the data section describes.
        key = "data" if section.data == resolved.config.data else f"evaluation.data.{name}"
        prepared[name] = prepare_data(resolved, section.data, tokenizer, created, limits, key)
    return prepared


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
