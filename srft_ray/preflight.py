"""Everything that can be known to be wrong before anything is started or written."""
import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedTokenizerBase

from algorithms import Algorithm
from srft_ray.checkpoint import latest_step
from srft_ray.config import Config, DataSection, check_values, nearest, to_yaml
from srft_ray.data.plan import StreamPlan, make_plan
from srft_ray.data.prepare import Limits, prepare, remove
from srft_ray.data.rows import data_format
from srft_ray.data.store import PreparedData
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.errors import UserError
from srft_ray.loggers import check_loggers
from srft_ray.models import load_model_config
from srft_ray.registry import make_algorithm
from srft_ray.verify import resolve as resolve_verifier

MINIMUM_DEEPSPEED = (0, 19)


@dataclass
class Resolved:
    """A config that can run: with its algorithm, its data prepared, and the plan of its stream."""
    config: Config
    algorithm: Algorithm
    train: PreparedData
    evaluation: dict[str, PreparedData]
    plan: StreamPlan


def resolve(config: Config, algorithm: Algorithm | None = None) -> Resolved:
    """Checks config, model and data against each other and prepares the data.

    Raises:
        UserError: with one sentence for the first thing that is wrong.
    """
    algorithm = resolve_settings(config, algorithm)
    load_model_config(config)
    check_run_directory(config)
    make_plan(config, {})  # its errors come before data are prepared
    train, evaluation = resolve_data(config, algorithm)
    return Resolved(config, algorithm, train, evaluation, make_plan(config, evaluation_sizes(config, evaluation)))


def resolve_settings(config: Config, algorithm: Algorithm | None = None) -> Algorithm:
    """Checks what needs neither model nor data; fills in verifier.name=auto and makes paths absolute; returns the algorithm."""
    _make_paths_absolute(config)
    if config.verifier.path is None and config.verifier.name == "auto":
        config.verifier.name = "tasks" if data_format(config.data) == "tasks" else "math"
    resolve_verifier(config.verifier.name, config.verifier.path)
    for name in config.evaluation.data:
        evaluation_section(config, name)
    check_loggers(config.run.loggers)
    if config.learner.offload_optimizer and config.learner.zero_stage == 0:
        raise UserError("learner.offload_optimizer needs learner.zero_stage 1, 2 or 3: ZeRO 0 has no partitioned optimizer.")
    check_deepspeed(version("deepspeed"))
    return algorithm or make_algorithm(config.algorithm)


def _make_paths_absolute(config: Config) -> None:
    """Ray's workers run in other directories than the driver."""
    config.run.dir = _absolute(config.run.dir)
    if Path(config.model.path).expanduser().exists():
        config.model.path = _absolute(config.model.path)
    if data_format(config.data) != "tasks":
        config.data.path = _absolute(config.data.path)
    config.verifier.path = config.verifier.path and _absolute(config.verifier.path)
    if ":" in config.rollout.transport:
        config.rollout.transport = _absolute(config.rollout.transport)
    if config.algorithm.get("path"):
        config.algorithm["path"] = _absolute(config.algorithm["path"])


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def check_deepspeed(installed: str) -> None:
    """Raises UserError for releases that silently lose gradients (DeepSpeed #7967, #7981)."""
    if tuple(int(part) for part in installed.split(".")[:2]) < MINIMUM_DEEPSPEED:
        raise UserError(f"DeepSpeed {installed} loses gradients with ZeRO-1/2 and optimizer offload: install deepspeed>=0.19.")


def check_run_directory(config: Config) -> None:
    """A directory that holds the same run unfinished is continued; any other run in it is an error."""
    blocked = [str(path) for path in (config.run_dir, *config.run_dir.parents) if path.exists() and not path.is_dir()]
    if blocked:
        raise UserError(f"{blocked[0]} is not a directory, so that the run directory {config.run_dir} cannot be made: choose another "
                        "run.dir or run.name.")
    record = config.run_dir / "config.yaml"
    if not record.exists():
        if config.run_dir.exists() and any(config.run_dir.iterdir()):
            raise UserError(f"The run directory {config.run_dir} is not empty and holds no run: choose another run.name.")
        return
    if record.read_text() != to_yaml(config):
        raise UserError(f"The run directory {config.run_dir} already holds a different run: choose another run.name or delete it.")
    if latest_step(config.run_dir) >= config.trainer.steps:
        raise UserError(f"The run in {config.run_dir} is already finished: choose another run.name or delete it.")


def resolve_data(config: Config, algorithm: Algorithm) -> tuple[PreparedData, dict[str, PreparedData]]:
    if config.trainer.evaluate_every and algorithm.uses_rollouts and not config.evaluation.data:
        raise UserError("trainer.evaluate_every is set, but evaluation.data names no set: add one, such as evaluation.data.heldout.path=… .")
    tokenizer, folder = load_tokenizer(config.model), data_folder(config)
    room = config.model.max_length - (config.rollout.max_new_tokens if algorithm.uses_rollouts else 1)
    only = algorithm.uses_demonstrations and not algorithm.uses_rollouts
    created: list[Path] = []
    try:
        train = prepare(config.data, tokenizer, Limits(room, config.model.max_length, only), folder, config.run.seed, created)
        _check_data(config, algorithm, train)
        return train, prepare_evaluation(config, tokenizer, folder, created) if algorithm.uses_rollouts else {}
    except UserError:
        remove(created)
        raise


def prepare_evaluation(config: Config, tokenizer: PreTrainedTokenizerBase, folder: Path,
                       created: list[Path] | None = None) -> dict[str, PreparedData]:
    limits = Limits(config.model.max_length - config.rollout.max_new_tokens, config.model.max_length)
    return {name: prepare(evaluation_section(config, name), tokenizer, limits, folder, config.run.seed, created) for name in config.evaluation.data}


def evaluation_sizes(config: Config, evaluation: dict[str, PreparedData]) -> dict[str, int]:
    """Prompts of each evaluation set that are used."""
    return {name: min(data.counts.kept, config.evaluation.max_prompts or data.counts.kept) for name, data in evaluation.items()}


def data_folder(config: Config) -> Path:
    """Where prepared data sets are kept, shared by the runs beside each other."""
    return Path(config.run.dir).expanduser().absolute() / ".data"


def evaluation_section(config: Config, name: str) -> DataSection:
    """The `data` section with the keys that the evaluation set changes; its format is found anew if its path differs."""
    given, keys = config.evaluation.data[name], [f.name for f in dataclasses.fields(DataSection)]
    if not isinstance(given, dict):
        raise UserError(f"evaluation.data.{name} must hold keys of the data section, such as path, not {given!r}.")
    for key in given:
        if key not in keys:
            raise UserError(f"Unknown config key 'evaluation.data.{name}.{key}': {nearest(key, keys)}")
    base = dataclasses.replace(config.data, format="auto") if "path" in given and config.data.format != "tasks" else config.data
    try:
        section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base), given))
        check_values(dataclasses.replace(config, data=section))
        return section
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for 'evaluation.data.{name}.{error.full_key}': {str(error).splitlines()[0]}.") from error
    except UserError as error:
        raise UserError(f"In evaluation.data.{name}: {error}") from error


def _check_data(config: Config, algorithm: Algorithm, train: PreparedData) -> None:
    counts = train.counts
    if algorithm.uses_demonstrations and not counts.demonstrations:
        raise UserError(f"No demonstrations: {algorithm.name} needs them and none of the {counts.kept} rows of {config.data.path} has one. "
                        "Set data.demonstration_field, or algorithm.name=grpo.")
    if algorithm.uses_rollouts and counts.without_answer:
        raise UserError(f"{counts.without_answer} of {counts.kept} rows of {config.data.path} have no reference answer, so that rollouts could "
                        "not be judged: set data.answer_field.")
    longest = max(counts.longest_prompt + config.rollout.max_new_tokens if algorithm.uses_rollouts else 0,
                  counts.longest_demonstration if algorithm.uses_demonstrations else 0)
    if config.learner.micro_batch_tokens < longest:
        raise UserError(f"learner.micro_batch_tokens={config.learner.micro_batch_tokens} is below the longest sequence of {longest} tokens: "
                        f"set it to at least {longest}.")
