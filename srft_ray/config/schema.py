"""The typed configuration: YAML plus `key=value` overrides, strict at the door."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from srft_ray.errors import UserError


def limited(default: Any, **limit: Any) -> Any:
    """A field whose value, unless None, must be one of `choices=(…)`, at least `least=…`, more than `above=…` or at most `most=…`."""
    return field(default=default, metadata=limit)


@dataclass
class RunSection:
    name: str = "srft"
    dir: str = "runs"
    seed: int = 0
    resume: str = limited(
        "auto", choices=("auto", "never")
    )  # auto: continue an unfinished run; never: its directory is an error
    device: str = limited("auto", choices=("auto", "cpu", "cuda"))
    loggers: list[str] = field(default_factory=list)  # wandb, mlflow; TensorBoard is always written


@dataclass
class ClusterSection:
    address: str | None = None  # None: RAY_ADDRESS if set, else a Ray of our own on this machine
    num_cpus: int | None = None  # logical CPUs of a Ray of our own; None: what the run asks for


@dataclass
class ModelSection:
    path: str = MISSING
    dtype: str = limited(
        "auto", choices=("auto", "float32", "bfloat16", "float16")
    )  # auto: bfloat16 on CUDA, float32 on CPU
    max_length: int = limited(2048, least=2)
    trust_remote_code: bool = False
    num_parameters: int | None = None  # for the estimates of `plan` where the model is not at hand


@dataclass
class DataSection:
    path: str = MISSING
    format: str = limited("auto", choices=("auto", "jsonl", "json", "parquet", "hf", "tasks"))
    prompt_field: str | None = None
    answer_field: str | None = None
    demonstration_field: str | None = None
    template: str = "auto"  # auto | chat | a text with {prompt} and, if given, {system_prompt}
    system_prompt: str | None = None
    overlong: str = limited("drop", choices=("drop", "error"))
    max_demonstrations: int = limited(1, least=1)  # per prompt and step; of several, the epoch chooses
    size: int = limited(4096, least=1)  # rows of built-in tasks
    split: str = limited("train", choices=("train", "heldout"))  # of built-in tasks


@dataclass
class RolloutSection:
    num_engines: Any = 1
    num_rollouts: int = limited(8, least=1)
    max_new_tokens: int = limited(512, least=1)
    temperature: float = limited(1.0, above=0)
    top_p: float = 1.0
    max_staleness: int = limited(0, least=0)
    tensor_parallel: int = limited(1, least=1)
    gpus_per_engine: float = limited(1.0, above=0)  # share of a GPU with tensor_parallel=1
    gpu_memory_utilization: float = 0.85
    cpus_per_engine: float = limited(1.0, above=0)
    max_num_seqs: int = limited(256, least=1)
    kv_cache_gib: int = limited(1, least=1)  # on CPU
    groups_per_task: int | None = limited(None, least=1)
    transport: str = "object_store"  # of weights to the engines; or a class of one's own, file.py:Class
    transport_chunk_mb: int = limited(512, least=1)
    resources: dict[str, float] = field(default_factory=dict)  # custom Ray resources of an engine
    timeout_s: float = limited(
        1800.0, above=0
    )  # for anything that waits for rollouts, for the coordinator or for weights
    stall_timeout_s: float = limited(
        300.0, above=0
    )  # an engine without progress, or a silent coordinator, is killed after it
    max_restarts: int = limited(
        10, least=0
    )  # of each engine; then the stream starts anew, which counts as a failure of the learners


@dataclass
class LearnerSection:
    num_workers: Any = 1
    zero_stage: int = limited(2, choices=(0, 1, 2, 3))
    offload_optimizer: bool = False
    micro_batch_tokens: int = limited(16384, least=1)
    mini_batches: int = limited(1, least=1)  # updates per step; it must divide the groups of a step
    reference: str | None = None  # frozen model for algorithms that need one; None: model.path
    lr: float = limited(1e-6, above=0)
    lr_schedule: str = limited("constant", choices=("constant", "linear", "cosine"))
    warmup_steps: int = limited(0, least=0)
    min_lr_ratio: float = limited(0.0, least=0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = limited(1e-8, above=0)
    weight_decay: float = limited(0.0, least=0)
    max_grad_norm: float = limited(1.0, above=0)
    activation_checkpointing: bool = False
    logit_chunk_mb: int = limited(64, least=1)
    parity_threshold: float | None = None  # None: 1e-3 in float32, 0.1 in bfloat16 and float16
    cpus_per_worker: float = limited(1.0, above=0)
    resources: dict[str, float] = field(default_factory=dict)  # custom Ray resources of a learner
    timeout_s: float = limited(1800.0, above=0)  # of a collective between learners
    start_timeout_s: float = limited(600.0, above=0)  # for learners to be placed and to start
    resize_interval_s: float = limited(
        60.0, above=0
    )  # how often num_workers=[min, max] looks for nodes that joined


@dataclass
class TrainerSection:
    steps: int = limited(100, least=1)
    groups_per_step: int = limited(16, least=1)
    first_group: int = limited(
        0, least=0
    )  # where in the seeded order of prompts step 0 begins: the end of an earlier run
    checkpoint_every: int = limited(0, least=0)  # 0: only after the last step
    checkpoint_path: str | None = (
        None  # directory or URI (s3://, gs://, …) under which run.name gets its own; None: in the run directory
    )
    keep_checkpoints: int | None = limited(None, least=1)  # the newest ones; None: all
    keep_every: int | None = limited(None, least=1)  # and those of steps that are a multiple of this
    keep_best: str | None = (
        None  # and the best by this metric (reward/mean) or evaluation set (its avg@k); higher is better
    )
    max_checkpoint_failures: int = limited(2, least=0)  # failed writes in a row that are only reported
    evaluate_every: int = limited(0, least=0)  # 0: never; else also before the first and after the last step
    max_failures: int = limited(3, least=0)  # restarts of the learner group
    resize_timeout_s: float = limited(
        300.0, above=0
    )  # how long a resize waits for a checkpoint, so that it repeats nothing


@dataclass
class EvaluationSection:
    data: dict[str, Any] = field(default_factory=dict)  # name -> keys of `data` that differ
    samples: int = limited(8, least=1)
    max_prompts: int | None = limited(None, least=1)
    temperature: float = limited(1.0, above=0)
    top_p: float = 1.0


@dataclass
class VerifierSection:
    name: str = "auto"  # auto: tasks for built-in tasks, else math
    path: str | None = None  # file.py:function
    timeout_s: float = limited(2.0, above=0)
    num_workers: int = limited(1, least=1)
    memory_mb: int = limited(2048, least=256)


@dataclass
class HardwareSection:
    """Figures that the user states for `plan`; training does not look at them."""

    learner_tflops: float | None = limited(
        None, above=0
    )  # peak of one learner's device in model.dtype, 1e12 operations/s
    utilization: float | None = limited(
        None, above=0, most=1
    )  # share of that peak in the learner's passes (MFU)
    engine_tokens_per_s: float | None = limited(None, above=0)  # of one engine with its batch full
    engine_token_ms: float | None = limited(
        None, above=0
    )  # between two tokens of one sequence: the longest response waits for all of its own
    network_gb_per_s: float | None = limited(
        None, above=0
    )  # 1e9 bytes/s, of weights from the learners to the engines
    mean_prompt_tokens: float | None = limited(None, above=0)
    mean_response_tokens: float | None = limited(None, above=0)  # of rollouts and demonstrations alike


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
    hardware: HardwareSection = field(default_factory=HardwareSection)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir).expanduser() / self.run.name


_SCHEMA = OmegaConf.structured(Config)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies `key=value` overrides. UserError: no such file, key or choice, or a value of the wrong type or size."""
    path = Path(path)
    require(
        path.is_file(), f"Config file {path} does not exist; pass the path of a YAML file (see examples/)."
    )
    try:
        given = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"Config file {path} is not valid YAML: {first_line(error)}.") from error
    require(
        isinstance(given, DictConfig),
        f"Config file {path} must hold sections such as 'model:' and 'data:', not a {type(given).__name__}.",
    )
    return _typed([(f"file {path}", given), *map(_override, overrides)])


def make_config(values: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A checked config from a nested dictionary, for use from Python; errors as `load_config`."""
    return _typed([("the dictionary", OmegaConf.create(values)), *map(_override, overrides)])


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def _override(text: str) -> tuple[str, DictConfig]:
    require(
        "=" in text and text[0] != "=",
        f"Override '{text}' is not of the form key=value, such as trainer.steps=10.",
    )
    try:
        return f"override '{text}'", OmegaConf.from_dotlist([text])
    except Exception as error:
        raise UserError(f"Override '{text}' cannot be read: {first_line(error)}.") from error


def _typed(parts: Iterable[tuple[str, DictConfig]]) -> Config:
    merged = _SCHEMA
    for where, part in parts:
        for section in part:  # one at a time: OmegaConf does not always say which does not fit
            try:
                merged = OmegaConf.merge(merged, OmegaConf.masked_copy(part, [section]))
            except (ConfigKeyError, ConfigAttributeError) as error:
                raise UserError(_unknown_key(where, str(error.full_key))) from error
            except (OmegaConfBaseException, TypeError) as error:
                key = getattr(error, "full_key", None) or section
                raise UserError(f"Wrong value for '{key}' in {where}: {first_line(error)}.") from error
    try:
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise UserError(
                f"Config key '{missing[0]}' has no value; set it in the YAML file or as {missing[0]}=… ."
            )
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for '{error.full_key}': {first_line(error)}.") from error
    check_values(config)
    return config


def all_keys(node: type = Config, prefix: str = "") -> list[str]:
    keys = []
    for item in dataclasses.fields(node):
        keys.append(prefix + item.name)
        if dataclasses.is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


def _unknown_key(where: str, key: str) -> str:
    (section, _, leaf), keys = key.rpartition("."), all_keys()
    siblings = [k for k in keys if section and k.startswith(f"{section}.")] or keys
    names = {k.rpartition(".")[2]: k for k in reversed(siblings)}
    close = [k for k in keys if k.endswith(f".{leaf}")] or [
        names[n] for n in difflib.get_close_matches(leaf, names, n=1, cutoff=0.5)
    ]
    hint = (
        f"did you mean '{close[0]}'?"
        if close
        else f"sections are {', '.join(f.name for f in dataclasses.fields(Config))}."
    )
    return f"Unknown config key '{key}' in {where}: {hint}"


def nearest(word: object, choices: Iterable[object]) -> str:
    """'did you mean X?' or the whole list, for error messages."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(names)}."


def require(condition: bool, sentence: str) -> None:
    """Raises UserError with the sentence unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()).rstrip(".")


def bounds(value: Any, key: str) -> tuple[int, int]:
    """(min, max) of a count that is given as n or [min, max]."""
    pair = value if isinstance(value, list) else [value, value]
    whole = len(pair) == 2 and all(type(n) is int for n in pair)  # a bool is not
    require(
        whole and 1 <= pair[0] <= pair[1],
        f"{key} must be a whole number of at least 1 or [min, max], not {value!r}.",
    )
    return pair[0], pair[1]


def check_values(config: Config) -> None:
    """What holds for a config by itself, before files, models and machines are looked at."""
    for name, section in vars(config).items():
        for item in dataclasses.fields(section) if dataclasses.is_dataclass(section) else ():
            _check_limit(f"{name}.{item.name}", getattr(section, item.name), **item.metadata)
    rollout, learner, groups = config.rollout, config.learner, config.trainer.groups_per_step
    bounds(rollout.num_engines, "rollout.num_engines")
    low, high = bounds(learner.num_workers, "learner.num_workers")
    for workers in range(low, high + 1):
        require(
            groups % workers == 0,
            f"trainer.groups_per_step={groups} is not divisible by {workers} learners "
            f"(learner.num_workers={learner.num_workers}): choose a multiple.",
        )
    trainer, best = config.trainer, config.trainer.keep_best
    require(
        trainer.keep_checkpoints is not None or not (trainer.keep_every or best),
        "trainer.keep_every and trainer.keep_best add to trainer.keep_checkpoints: set that too.",
    )
    require(
        best is None or best in config.evaluation.data or "/" in best,
        f"trainer.keep_best={best} is neither a set of evaluation.data nor a metric such as reward/mean.",
    )
    require(
        len(learner.betas) == 2 and all(0 <= beta < 1 for beta in learner.betas),
        f"learner.betas must be two numbers in [0, 1), not {learner.betas}.",
    )
    require(
        rollout.top_p == 1.0,
        f"rollout.top_p={rollout.top_p} would train on log-probs of another distribution than the policy's: "
        "training rollouts need top_p=1.0 (evaluation.top_p is free).",
    )
    require(
        0 < config.evaluation.top_p <= 1,
        f"evaluation.top_p must be in (0, 1], not {config.evaluation.top_p}.",
    )
    require(
        rollout.max_new_tokens < config.model.max_length,
        f"rollout.max_new_tokens={rollout.max_new_tokens} leaves no room for a prompt in "
        f"model.max_length={config.model.max_length}: lower the one or raise the other.",
    )


def _check_limit(
    key: str,
    value: Any,
    choices: Sequence[Any] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> None:
    if choices and value not in choices:
        raise UserError(f"{key} is {value!r}: {nearest(value, choices)}")
    if value is not None:  # NaN is within no limit
        require(least is None or value >= least, f"{key} must be at least {least}, not {value}.")
        require(above is None or value > above, f"{key} must be above {above}, not {value}.")
        require(most is None or value <= most, f"{key} must be at most {most}, not {value}.")
