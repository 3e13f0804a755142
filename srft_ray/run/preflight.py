"""Everything that can be known to be wrong before anything is started or written."""

import dataclasses
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedTokenizerBase

from algorithms import Algorithm
from srft_ray.config.algorithm import check_terms, make_algorithm, settings_of
from srft_ray.config.schedule import learning_rate, stage_size, updates_per_step
from srft_ray.config.schema import Config, DataSection, check_values, first_line, nearest, require
from srft_ray.data.plan import StreamPlan, make_plan, needs_engines
from srft_ray.data.prepare import Limits, prepare, remove
from srft_ray.data.rows import data_format
from srft_ray.data.store import PreparedData
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.errors import UserError
from srft_ray.models import load_model_config
from srft_ray.observe.loggers import check_loggers
from srft_ray.sync.transport import transport_class
from srft_ray.train.checkpoint import CheckpointStore
from srft_ray.verify import resolve as resolve_verifier

LOCK = ".lock"
PLACEMENT = {  # may change when a run is continued: nothing of it enters an update
    "cluster",
    "hardware",
    "run.dir",
    "run.name",
    "run.resume",
    "run.loggers",
    *(
        f"learner.{name}"
        for name in (
            "num_workers",
            "zero_stage",
            "offload_optimizer",
            "micro_batch_tokens",
            "activation_checkpointing",
            "logit_chunk_mb",
            "parity_threshold",
            "cpus_per_worker",
            "resources",
            "timeout_s",
            "start_timeout_s",
            "resize_interval_s",
        )
    ),
    *(
        f"rollout.{name}"
        for name in (
            "num_engines",
            "tensor_parallel",
            "gpus_per_engine",
            "gpu_memory_utilization",
            "cpus_per_engine",
            "max_num_seqs",
            "kv_cache_gib",
            "groups_per_task",
            "transport",
            "transport_chunk_mb",
            "resources",
            "timeout_s",
            "stall_timeout_s",
            "max_restarts",
        )
    ),
    *(
        f"trainer.{name}"
        for name in (
            "checkpoint_every",
            "keep_checkpoints",
            "keep_every",
            "keep_best",
            "max_checkpoint_failures",
            "max_failures",
            "resize_timeout_s",
        )
    ),
    "verifier.num_workers",
    "verifier.memory_mb",
}


@dataclass
class Resolved:
    """A config that can run: with its algorithm, its data prepared, and the plan of its stream."""

    config: Config
    algorithm: Algorithm
    train: PreparedData
    evaluation: dict[str, PreparedData]
    plan: StreamPlan


def resolve(config: Config, algorithm: Algorithm | None = None) -> Resolved:
    """Checks config, model and data against each other and prepares the data. UserError: one sentence for the first thing that is wrong."""
    algorithm = resolve_settings(config, algorithm)
    _check_reference(config, algorithm, load_model_config(config))
    check_run_directory(config, algorithm)
    make_plan(config, {}, algorithm)  # its errors come before data are prepared
    require(
        not (config.trainer.evaluate_every and not config.evaluation.data),
        "trainer.evaluate_every is set, but evaluation.data names no set: add one, such as evaluation.data.heldout.path=… .",
    )
    tokenizer, folder, created = load_tokenizer(config.model), data_folder(config), list[Path]()
    try:
        train = prepare(config.data, tokenizer, limits(config), folder, config.run.seed, created)
        _check_data(config, algorithm, train)
        evaluation = (
            prepare_evaluation(config, tokenizer, folder, created) if needs_engines(config, algorithm) else {}
        )
    except UserError:
        remove(created)
        raise
    return Resolved(
        config,
        algorithm,
        train,
        evaluation,
        make_plan(config, evaluation_sizes(config, evaluation), algorithm),
    )


def resolve_settings(config: Config, algorithm: Algorithm | None = None) -> Algorithm:
    """Checks what needs neither model nor data; fills in verifier.name=auto and the algorithm's
    settings and makes paths absolute; returns the algorithm."""
    _make_paths_absolute(config)
    if config.verifier.path is None and config.verifier.name == "auto":
        config.verifier.name = "tasks" if data_format(config.data) == "tasks" else "math"
    resolve_verifier(config.verifier.name, config.verifier.path)
    transport_class(config.rollout.transport)
    for name in config.evaluation.data:
        evaluation_section(config, name)
    check_loggers(config.run.loggers)
    require(
        config.learner.zero_stage > 0 or not config.learner.offload_optimizer,
        "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3: ZeRO 0 has no partitioned optimizer.",
    )
    check_deepspeed(version("deepspeed"))
    section = {} if algorithm else config.algorithm
    algorithm = algorithm or make_algorithm(section)
    check_terms(algorithm)
    config.algorithm = settings_of(algorithm, section)
    check_stages(config, algorithm)
    return algorithm


def _check_reference(config: Config, algorithm: Algorithm, model: Any) -> None:
    path = config.learner.reference
    if path is None:
        return
    require(
        "reference" in algorithm.needs,
        f"learner.reference is set, but no term of {algorithm.name} uses a reference: remove it.",
    )
    reference = load_model_config(
        dataclasses.replace(config, model=dataclasses.replace(config.model, path=path)),
        key="learner.reference",
    )
    require(
        reference.vocab_size == model.vocab_size,
        f"learner.reference {path} has another vocabulary than model.path.",
    )


def _make_paths_absolute(config: Config) -> None:
    """Ray's workers run in other directories than the driver."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    config.run.dir = absolute(config.run.dir)
    if config.trainer.checkpoint_path and "://" not in config.trainer.checkpoint_path:
        config.trainer.checkpoint_path = absolute(config.trainer.checkpoint_path)
    if Path(config.model.path).expanduser().exists():
        config.model.path = absolute(config.model.path)
    if data_format(config.data) != "tasks":
        config.data.path = absolute(config.data.path)
    if config.learner.reference and Path(config.learner.reference).expanduser().exists():
        config.learner.reference = absolute(config.learner.reference)
    if config.verifier.path:
        config.verifier.path = absolute(config.verifier.path)
    if ":" in config.rollout.transport:
        config.rollout.transport = absolute(config.rollout.transport)
    if config.algorithm.get("path"):
        config.algorithm["path"] = absolute(config.algorithm["path"])


def shared_paths(config: Config) -> dict[str, str]:
    """Absolute paths that learners and engines read or write, by config key; a hub's model id is none."""
    plugins = {
        "verifier.path": config.verifier.path,
        "rollout.transport": config.rollout.transport,
        "algorithm.path": config.algorithm.get("path"),
    }
    found = {
        "run.dir": config.run.dir,
        "trainer.checkpoint_path": (config.trainer.checkpoint_path or "").removeprefix("file://"),
        "model.path": config.model.path,
        "learner.reference": config.learner.reference or "",
        **{key: str(value).rpartition(":")[0] for key, value in plugins.items()},
    }
    return {key: path for key, path in found.items() if Path(path).is_absolute()}


def check_deepspeed(installed: str) -> None:
    """Releases before 0.19 silently lose gradients (DeepSpeed #7967, #7981)."""
    require(
        tuple(int(part) for part in installed.split(".")[:2]) >= (0, 19),
        f"DeepSpeed {installed} loses gradients with ZeRO-1/2 and optimizer offload: install deepspeed>=0.19.",
    )


def check_run_directory(config: Config, algorithm: Algorithm) -> None:
    """A directory that holds the same run, or its first steps, is continued; any other run in it is an error."""
    folder, record = config.run_dir, config.run_dir / "config.yaml"
    for path in (folder, *folder.parents):
        require(
            path.is_dir() or not path.exists(),
            f"{path} is not a directory, so that the run directory {folder} cannot be made: choose another "
            "run.dir or run.name.",
        )
    store = CheckpointStore.of(config)
    if not record.exists():
        require(
            not folder.exists()
            or {path.name for path in folder.iterdir()} <= {LOCK, "groups", "config.yaml.part"},
            f"The run directory {folder} is not empty and holds no run: choose another run.name.",
        )
        require(
            store.latest() == 0,
            f"{store.scheme}{store.root} holds checkpoints of another run: choose another run.name or "
            "trainer.checkpoint_path.",
        )
        return
    require(
        config.run.resume == "auto",
        f"The run directory {folder} already holds a run, and run.resume=never: choose another run.name or delete "
        "it.",
    )
    before = OmegaConf.to_container(OmegaConf.load(record))
    changed = changes(before, dataclasses.asdict(config))
    if changed == ["trainer.steps"] and same_steps(
        config, algorithm, before["trainer"]["steps"], store.latest()
    ):
        return
    require(
        not changed,
        f"The run directory {folder} already holds a different run ({', '.join(changed)} changed): choose another run.name or "
        "delete it.",
    )


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys that differ and enter what a run computes; where and how it runs may change when it is continued."""
    found = []
    for key in before.keys() | now.keys():
        name, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if name in PLACEMENT or old == new:
            continue
        found += (
            changes(old, new, f"{name}.")
            if isinstance(old, dict) and isinstance(new, dict) and not prefix
            else [name]
        )
    return sorted(found)


def same_steps(config: Config, algorithm: Algorithm, before: int, done: int) -> bool:
    """Whether the steps that are done, in a run of `before` steps, are those that this run would have begun with."""

    def what(step: int, steps: int) -> tuple[str, int, int, float]:
        stage = algorithm.stage(step, steps)
        return (
            stage.algorithm.name,
            stage.start,
            stage_size(config, stage),
            learning_rate(config.learner, stage, step),
        )

    return done <= config.trainer.steps and all(
        what(step, before) == what(step, config.trainer.steps) for step in range(done)
    )


@contextmanager
def claimed(config: Config) -> Iterator[None]:
    """The run directory is this process's own; the system gives it back when the process ends, however it ends.

    Raises:
        UserError: another process trains in it.
    """
    (config.run_dir / "groups").mkdir(parents=True, exist_ok=True)
    with (config.run_dir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process trains in the run directory {config.run_dir}: wait for its end or choose another run.name."
            ) from None
        yield


def limits(config: Config) -> Limits:
    """What fits. The same for every algorithm, so that all of them see the same prompts in the same order."""
    return Limits(config.model.max_length - config.rollout.max_new_tokens, config.model.max_length)


def check_stages(config: Config, algorithm: Algorithm) -> None:
    """UserError: a stage that its settings and the run's do not allow."""
    try:
        stages = [algorithm.stage(step, config.trainer.steps) for step in (0, config.trainer.steps - 1)]
    except ValueError as error:
        raise UserError(f"The settings of algorithm do not fit trainer.steps: {error}.") from error
    for stage in stages:
        name, size, number = (
            stage.algorithm.name,
            stage_size(config, stage),
            updates_per_step(config.learner, stage),
        )
        require(
            size % number == 0,
            f"{number} mini-batches do not divide the {size} groups per step of {name}: choose a divisor.",
        )
        require(
            config.rollout.num_rollouts >= stage.algorithm.min_rollouts,
            f"{name} compares the rollouts of a prompt with each other: set "
            f"rollout.num_rollouts to at least {stage.algorithm.min_rollouts}.",
        )
        require(
            stage.start == 0
            or "reference" not in stage.algorithm.needs
            or config.learner.reference is not None,
            f"The second stage, {name}, uses a reference model, and it would be the model before the first stage: set learner.reference.",
        )


def prepare_evaluation(
    config: Config, tokenizer: PreTrainedTokenizerBase, folder: Path, created: list[Path] | None = None
) -> dict[str, PreparedData]:
    fits, seed = limits(config), config.run.seed
    return {
        name: prepare(evaluation_section(config, name), tokenizer, fits, folder, seed, created)
        for name in config.evaluation.data
    }


def evaluation_sizes(config: Config, evaluation: dict[str, PreparedData]) -> dict[str, int]:
    """Prompts of each evaluation set that are used."""
    return {
        name: min(data.counts.kept, config.evaluation.max_prompts or data.counts.kept)
        for name, data in evaluation.items()
    }


def data_folder(config: Config) -> Path:
    """Where prepared data sets are kept, shared by the runs beside each other."""
    return Path(config.run.dir).expanduser().absolute() / ".data"


def evaluation_section(config: Config, name: str) -> DataSection:
    """The `data` section with the keys that the evaluation set changes; its format is found anew if its path differs."""
    given, keys, where = (
        config.evaluation.data[name],
        [f.name for f in dataclasses.fields(DataSection)],
        f"evaluation.data.{name}",
    )
    require(
        isinstance(given, dict), f"{where} must hold keys of the data section, such as path, not {given!r}."
    )
    for key in given:
        require(key in keys, f"Unknown config key '{where}.{key}': {nearest(key, keys)}")
    base = (
        dataclasses.replace(config.data, format="auto")
        if "path" in given and config.data.format != "tasks"
        else config.data
    )
    try:
        section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base), given))
        check_values(dataclasses.replace(config, data=section))
        return section
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for '{where}.{error.full_key}': {first_line(error)}.") from error
    except UserError as error:
        raise UserError(f"In {where}: {error}") from error


def _check_data(config: Config, algorithm: Algorithm, train: PreparedData) -> None:
    counts, path, room = train.counts, config.data.path, config.learner.micro_batch_tokens
    require(
        counts.demonstrations > 0 or not algorithm.uses_demonstrations,
        f"No demonstrations: {algorithm.name} needs them and none of the "
        f"{counts.kept} rows of {path} has one that fits ({counts.overlong_demonstrations} are too long for model.max_length). Set "
        "data.demonstration_field, or algorithm.name=grpo.",
    )
    require(
        not (algorithm.uses_rollouts and counts.without_answer),
        f"{counts.without_answer} of {counts.kept} rows of {path} have no reference "
        "answer, so that rollouts could not be judged: set data.answer_field.",
    )
    longest = max(
        algorithm.uses_rollouts * (counts.longest_prompt + config.rollout.max_new_tokens),
        algorithm.uses_demonstrations * counts.longest_demonstration,
    )
    require(
        longest <= room,
        f"learner.micro_batch_tokens={room} is below the longest sequence of {longest} tokens: set it to at least {longest}.",
    )
