"""The config: its sections, and the settings of all but the training sections."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from srft_ray.config.hardware import HardwareSection
from srft_ray.config.rollout import RolloutSection
from srft_ray.config.settings import setting
from srft_ray.config.training import LearnerSection, TrainerSection


@dataclass
class RunSection:
    """The run's name, its directory, and its seed."""

    name: str = setting(
        "srft", "Name of the run; its run directory is `run.dir`/`run.name`.", may_change=True
    )
    dir: str = setting("runs", "Directory that holds the run directories.", may_change=True)
    seed: int = setting(0, "Seed of everything random: order of the prompts, sampling, built-in tasks.")
    resume: str = setting(
        "auto",
        "What to do if the run directory holds a run: `auto` continues it, `never` is an error, "
        "`from_scratch` starts anew and keeps what is there under another name.",
        may_change=True,
        choices=("auto", "never", "from_scratch"),
    )
    device: str = setting(
        "auto",
        "Device of learners and engines. `auto` uses CUDA if the cluster has GPUs.",
        choices=("auto", "cpu", "cuda"),
    )
    loggers: list[str] = setting(
        list,
        "Additional loggers: `wandb`, `mlflow`. TensorBoard and Ray's metrics are always written.",
        may_change=True,
    )


@dataclass
class ClusterSection:
    """Where Ray is."""

    address: str | None = setting(
        None,
        "Address of the Ray cluster; by default that of RAY_ADDRESS. Without either, Ray is started on this "
        "machine.",
        may_change=True,
    )
    num_cpus: int | None = setting(
        None,
        "Logical CPUs of the Ray that is started on this machine; by default as many as it has or the run "
        "asks for, whichever is more.",
        may_change=True,
    )
    fork_server: bool = setting(
        True,
        "Whether the processes of a Ray that is started on this machine are forks of one that has imported "
        "the large libraries. On a machine with GPUs they never are.",
        may_change=True,
    )
    placement: str = setting(
        "auto",
        "Whether learners and engines have devices of their own (`separate`), or share them and work "
        "alternately (`colocated`), which needs rollout.max_staleness=0: on GPUs each learner shares one "
        "with at most one engine; on CPU whoever works has all cores of this machine, but in a Ray cluster "
        "only the CPUs that it reserves. `auto` shares them where GPUs are too few for both.",
        choices=("auto", "separate", "colocated"),
        may_change=True,
    )


@dataclass
class ModelSection:
    """The model that is trained."""

    path: str = setting(
        MISSING, "Model directory (config.json and safetensors), or the id of a model on a hub."
    )
    dtype: str = setting(
        "auto",
        "Number format of learners and engines; `auto` is bfloat16 on CUDA and float32 on CPU. In bfloat16 "
        "learners keep float32 weights too, and sum gradients in float32. float16 is for evaluation only.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_length: int = setting(2048, "Longest sequence, prompt and response together, in tokens.", least=2)
    trust_remote_code: bool = setting(False, "Whether Python code in the model directory may be executed.")
    num_parameters: int | None = setting(
        None,
        "Number of parameters, for the estimates of `srft-ray plan` on a machine that does not have the "
        "model.",
    )


@dataclass
class DataSection:
    """Prompts, reference answers and demonstrations."""

    path: str = setting(
        MISSING,
        "File or dataset directory; with `format: tasks` families such as `sums+products` or `programs`.",
    )
    format: str = setting(
        "auto",
        "Format of the data; `auto` derives it from the file name. `tasks` are built-in tasks, which need "
        "no file.",
        choices=("auto", "jsonl", "json", "parquet", "hf", "tasks"),
    )
    prompt_field: str | None = setting(
        None,
        "Field that holds the prompt; `extra.question` is a field of a nested record. By default prompt, "
        "question or problem.",
    )
    answer_field: str | None = setting(
        None,
        "Field that holds the reference answer. By default answer, reference, ground_truth or "
        "reward_model.ground_truth.",
    )
    demonstration_field: str | None = setting(
        None,
        "Field that holds the demonstrations, a text or a list of texts. By default demonstration, "
        "demonstrations, solution, response or target.",
    )
    template: str = setting(
        "auto",
        "How a prompt is rendered: `chat` uses the tokenizer's chat template; `auto` uses it if there is "
        "one. Any other value is a text with {prompt}, and with {system_prompt} if a system prompt is set.",
    )
    system_prompt: str | None = setting(None, "System prompt; it becomes part of every prompt.")
    overlong: str = setting(
        "drop",
        "What to do with rows that are too long for model.max_length: leave them out, or refuse the data.",
        choices=("drop", "error"),
    )
    max_demonstrations: int = setting(
        1,
        "Demonstrations used for each prompt and step. If a prompt has more, each epoch uses the next ones.",
        least=1,
    )
    size: int = setting(4096, "Number of rows that built-in tasks generate.", least=1)
    split: str = setting(
        "train", "Split of built-in tasks; the two have no question in common.", choices=("train", "heldout")
    )


@dataclass
class EvaluationSection:
    """Evaluation sets and how they are sampled."""

    data: dict[str, Any] = setting(
        dict,
        "Evaluation sets by name; of each, the keys that differ from the data section. A set may also have "
        "`samples`, `max_prompts`, `temperature`, `top_p`, `max_new_tokens` and `verifier` (a name, or "
        "`file.py:function`) of its own.",
    )
    samples: int = setting(8, "Responses sampled for each prompt, the k of avg@k and pass@k.", least=1)
    max_prompts: int | None = setting(
        None, "Number of prompts used of each set, from its beginning; by default all.", least=1
    )
    temperature: float = setting(1.0, "Sampling temperature.", above=0)
    top_p: float = setting(1.0, "Probability mass of nucleus sampling, in (0, 1].")


@dataclass
class LedgerSection:
    """What the ledger records beside the sequences."""

    tokens: bool = setting(
        False,
        "Whether it also has, for each response token, the learner's log-prob and entropy, the importance "
        "ratio and the weight of each term, as the update used them. It is about three times as large then.",
        may_change=True,
    )


@dataclass
class VerifierSection:
    """The function that gives a response its verdict and reward, and the processes that it runs in."""

    name: str = setting(
        "auto",
        "`math` compares mathematical answers, `tasks` scores built-in tasks, `code` runs the tests of a "
        "program, `either` is a lenient `math`; `auto` chooses `tasks` or `math` by the data.",
    )
    path: str | None = setting(
        None, "A verifier of your own, `file.py:function`; see docs/getting-started.md."
    )
    timeout_s: float = setting(
        2.0,
        "Time limit for the verification of one response, in seconds; after it the verdict is `timeout`.",
        above=0,
    )
    num_workers: int = setting(1, "Verifier processes of each engine.", may_change=True, least=1)
    memory_mb: int = setting(
        2048,
        "Memory that a verifier process may use in addition to its imports, in MiB.",
        may_change=True,
        least=256,
    )
    network: bool = setting(
        False,
        "Whether verifiers may use the network, for one that asks a server. They are kept from it where the "
        "kernel allows that, which is said at the start where it does not.",
        may_change=True,
    )
    environment: list[str] = setting(
        list,
        "Names of environment variables that verifiers may see, such as a server's key. Of the others they "
        "see only those that Python needs.",
        may_change=True,
    )


@dataclass
class Config:
    """All sections. Made by `load_config` or `make_config`, which check it."""

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
    ledger: LedgerSection = field(default_factory=LedgerSection)
    hardware: HardwareSection = field(default_factory=HardwareSection)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir).expanduser() / self.run.name
