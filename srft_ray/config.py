"""The typed configuration: YAML plus `key=value` overrides, strict at the door."""
import dataclasses
import difflib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from srft_ray.errors import UserError


@dataclass
class RunSection:
    name: str = "srft"
    dir: str = "runs"
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    loggers: list[str] = field(default_factory=list)  # wandb, mlflow; TensorBoard is always written


@dataclass
class ClusterSection:
    address: str | None = None  # None: RAY_ADDRESS if set, else a Ray of our own on this machine
    num_cpus: int | None = None  # logical CPUs of a Ray of our own; None: what the run asks for


@dataclass
class ModelSection:
    path: str = MISSING
    dtype: str = "auto"  # auto: bfloat16 on CUDA, float32 on CPU
    max_length: int = 2048
    trust_remote_code: bool = False
    num_parameters: int | None = None  # for the estimates of `plan` where the model is not at hand


@dataclass
class DataSection:
    path: str = MISSING
    format: str = "auto"  # auto | jsonl | json | parquet | hf | tasks
    prompt_field: str | None = None
    answer_field: str | None = None
    demonstration_field: str | None = None
    template: str = "auto"  # auto | chat | a text with {prompt} and, if given, {system_prompt}
    system_prompt: str | None = None
    overlong: str = "drop"  # drop | error
    max_demonstrations: int = 1  # per prompt and step; of several, the epoch chooses
    size: int = 4096  # rows of built-in tasks
    split: str = "train"  # of built-in tasks: train | heldout


@dataclass
class RolloutSection:
    num_engines: Any = 1
    num_rollouts: int = 8
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    max_staleness: int = 0
    tensor_parallel: int = 1
    gpus_per_engine: float = 1.0  # share of a GPU with tensor_parallel=1
    gpu_memory_utilization: float = 0.85
    cpus_per_engine: float = 1.0
    max_num_seqs: int = 256
    kv_cache_gib: int = 1  # on CPU
    groups_per_task: int | None = None
    transport: str = "object_store"  # object_store | nccl | file.py:Class
    transport_chunk_mb: int = 512
    timeout_s: float = 1800.0


@dataclass
class LearnerSection:
    num_workers: Any = 1
    zero_stage: int = 2
    offload_optimizer: bool = False
    micro_batch_tokens: int = 16384
    lr: float = 1e-6
    lr_schedule: str = "constant"  # constant | linear | cosine
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    activation_checkpointing: bool = False
    logit_chunk_mb: int = 64
    parity_threshold: float | None = None  # None: 1e-3 in float32, 0.1 in bfloat16 and float16
    cpus_per_worker: float = 1.0


@dataclass
class TrainerSection:
    steps: int = 100
    groups_per_step: int = 16
    checkpoint_every: int = 0  # 0: only after the last step
    keep_checkpoints: int | None = None
    evaluate_every: int = 0  # 0: never; else also before the first and after the last step
    max_failures: int = 3  # restarts of the learner group


@dataclass
class EvaluationSection:
    data: dict[str, Any] = field(default_factory=dict)  # name -> keys of `data` that differ
    samples: int = 8
    max_prompts: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class VerifierSection:
    name: str = "auto"  # auto: tasks for built-in tasks, else math
    path: str | None = None  # file.py:function
    timeout_s: float = 2.0
    num_workers: int = 1
    memory_mb: int = 2048


@dataclass
class Config:
    run: RunSection = field(default_factory=RunSection)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    algorithm: dict[str, Any] = field(default_factory=lambda: {"name": "srft"})
    rollout: RolloutSection = field(default_factory=RolloutSection)
    learner: LearnerSection = field(default_factory=LearnerSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    verifier: VerifierSection = field(default_factory=VerifierSection)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir).expanduser() / self.run.name


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides, and checks every key and type.

    Raises:
        UserError: the file or a key is unknown, or a value has the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Config file {path} does not exist; pass the path of a YAML file (see examples/).")
    try:
        given = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"Config file {path} is not valid YAML: {_one_line(error)}.") from error
    if not isinstance(given, DictConfig):
        raise UserError(f"Config file {path} must hold sections such as 'model:' and 'data:', not a {type(given).__name__}.")
    return _typed([(f"file {path}", given), *map(_override, overrides)])


def make_config(values: dict[str, Any]) -> Config:
    """A checked config from a nested dictionary, for use from Python; errors as `load_config`."""
    return _typed([("the dictionary", OmegaConf.create(values))])


@lru_cache
def _schema() -> DictConfig:
    return OmegaConf.structured(Config)


def _override(text: str) -> tuple[str, DictConfig]:
    if "=" not in text or text.startswith("="):
        raise UserError(f"Override '{text}' is not of the form key=value, such as trainer.steps=10.")
    try:
        return f"override '{text}'", OmegaConf.from_dotlist([text])
    except Exception as error:
        raise UserError(f"Override '{text}' cannot be read: {_one_line(error)}.") from error


def _typed(parts: list[tuple[str, DictConfig]]) -> Config:
    merged = _schema()
    for where, part in parts:
        try:
            merged = OmegaConf.merge(merged, part)
        except (ConfigKeyError, ConfigAttributeError) as error:
            raise UserError(_unknown_key(where, str(error.full_key))) from error
        except (OmegaConfBaseException, TypeError) as error:
            key = getattr(error, "full_key", None) or _misfit(merged, part)
            raise UserError(f"Wrong value for '{key}' in {where}: {_one_line(error)}.") from error
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"Config key '{missing[0]}' has no value; set it in the YAML file or as {missing[0]}=… .")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for '{error.full_key}': {_one_line(error)}.") from error
    assert isinstance(config, Config)
    check_values(config)
    return config


def _misfit(base: DictConfig, part: DictConfig) -> str:
    """The section of `part` that cannot be merged: OmegaConf does not say which, where a list stands in place of keys or the reverse."""
    for name in part:
        try:
            OmegaConf.merge(base, OmegaConf.masked_copy(part, name))
        except (OmegaConfBaseException, TypeError):
            return str(name)
    return "the whole"


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def all_keys(node: type = Config, prefix: str = "") -> list[str]:
    keys = []
    for item in dataclasses.fields(node):
        keys.append(prefix + item.name)
        if dataclasses.is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


def nearest(word: str, choices: list[str] | tuple[str, ...]) -> str:
    """': did you mean X?' or the whole list, for error messages."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(choices)}."


def bounds(value: Any, key: str) -> tuple[int, int]:
    """(min, max) of a count that is given as n or [min, max]."""
    pair = [value, value] if isinstance(value, int) and not isinstance(value, bool) else value
    whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
    if not whole or not 1 <= pair[0] <= pair[1]:
        raise UserError(f"{key} must be a whole number of at least 1 or [min, max], not {value!r}.")
    return pair[0], pair[1]


def _unknown_key(where: str, key: str) -> str:
    (section, _, leaf), keys = key.rpartition("."), all_keys()
    siblings = [k for k in keys if section and k.startswith(f"{section}.")] or keys
    names = {k.rpartition(".")[2]: k for k in reversed(siblings)}
    close = [k for k in keys if k.endswith(f".{leaf}")] or [names[n] for n in difflib.get_close_matches(leaf, names, n=1, cutoff=0.5)]
    hint = f"did you mean '{close[0]}'?" if close else f"sections are {', '.join(f.name for f in dataclasses.fields(Config))}."
    return f"Unknown config key '{key}' in {where}: {hint}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()).rstrip(".")


_CHOICES = {
    "run.device": ("auto", "cpu", "cuda"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "data.format": ("auto", "jsonl", "json", "parquet", "hf", "tasks"),
    "data.overlong": ("drop", "error"),
    "data.split": ("train", "heldout"),
    "learner.zero_stage": (0, 1, 2, 3),
    "learner.lr_schedule": ("constant", "linear", "cosine"),
}
_AT_LEAST = {
    "model.max_length": 2, "data.size": 1, "data.max_demonstrations": 1, "rollout.num_rollouts": 1,
    "rollout.max_new_tokens": 1, "rollout.max_staleness": 0, "rollout.tensor_parallel": 1, "rollout.max_num_seqs": 1,
    "rollout.kv_cache_gib": 1, "rollout.groups_per_task": 1, "rollout.transport_chunk_mb": 1,
    "learner.micro_batch_tokens": 1, "learner.warmup_steps": 0, "learner.weight_decay": 0, "learner.logit_chunk_mb": 1,
    "trainer.steps": 1, "trainer.groups_per_step": 1, "trainer.checkpoint_every": 0, "trainer.keep_checkpoints": 1,
    "trainer.evaluate_every": 0, "trainer.max_failures": 0, "evaluation.samples": 1, "evaluation.max_prompts": 1,
    "verifier.num_workers": 1, "verifier.memory_mb": 256, "learner.min_lr_ratio": 0,
}
_POSITIVE = ("rollout.temperature", "evaluation.temperature", "learner.lr", "learner.max_grad_norm", "verifier.timeout_s",
             "rollout.gpus_per_engine", "rollout.cpus_per_engine", "learner.cpus_per_worker", "rollout.timeout_s",
             "learner.eps")


def check_values(config: Config) -> None:
    """What holds for a config by itself, before files, models and machines are looked at."""
    def value(key: str) -> Any:
        section, leaf = key.split(".")
        return getattr(getattr(config, section), leaf)

    for key, choices in _CHOICES.items():
        if value(key) not in choices:
            raise UserError(f"{key} is {value(key)!r}: {nearest(str(value(key)), [str(c) for c in choices])}")
    for key, least in _AT_LEAST.items():
        if value(key) is not None and not value(key) >= least:  # nor NaN
            raise UserError(f"{key} must be at least {least}, not {value(key)}.")
    for key in _POSITIVE:
        if not value(key) > 0:
            raise UserError(f"{key} must be above 0, not {value(key)}.")
    bounds(config.rollout.num_engines, "rollout.num_engines")
    _check_learners(config)
    _check_sampling(config)


def _check_learners(config: Config) -> None:
    betas = config.learner.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"learner.betas must be two numbers in [0, 1), not {betas}.")
    low, high = bounds(config.learner.num_workers, "learner.num_workers")
    for workers in range(low, high + 1):
        if config.trainer.groups_per_step % workers:
            raise UserError(f"trainer.groups_per_step={config.trainer.groups_per_step} is not divisible by {workers} learners "
                            f"(learner.num_workers={config.learner.num_workers}): choose a multiple.")


def _check_sampling(config: Config) -> None:
    if config.rollout.top_p != 1.0:
        raise UserError(f"rollout.top_p={config.rollout.top_p} would train on log-probs of another distribution than the "
                        "policy's: training rollouts need top_p=1.0 (evaluation.top_p is free).")
    if not 0 < config.evaluation.top_p <= 1:
        raise UserError(f"evaluation.top_p must be in (0, 1], not {config.evaluation.top_p}.")
    if config.rollout.max_new_tokens >= config.model.max_length:
        raise UserError(f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a prompt in "
                        f"model.max_length={config.model.max_length}: lower the one or raise the other.")
