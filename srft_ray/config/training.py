"""The training sections of the config: rollout, learner, trainer."""

from dataclasses import dataclass
from typing import Any

from srft_ray.config.settings import setting


@dataclass
class RolloutSection:
    """The vLLM engines and how they sample."""

    num_engines: Any = setting(1, "Number of engines, or [min, max] for an elastic pool.", may_change=True)
    num_rollouts: int = setting(8, "Rollouts of each prompt.", least=1)
    max_new_tokens: int = setting(512, "Longest response, in tokens.", least=1)
    temperature: float = setting(
        1.0, "Sampling temperature; the learner divides its logits by the same.", above=0
    )
    top_p: float = setting(1.0, "Must be 1: training rollouts are sampled from the whole distribution.")
    max_staleness: int = setting(
        0,
        "Versions that a rollout may be behind when it starts. 0 is on-policy; with more, engines sample ahead "
        "while learners train.",
        least=0,
    )
    tensor_parallel: int = setting(1, "GPUs of one engine.", may_change=True, least=1)
    gpus_per_engine: float = setting(
        1.0, "Share of a GPU that an engine takes with tensor_parallel=1.", may_change=True, above=0
    )
    gpu_memory_utilization: float = setting(
        0.85, "Share of the GPU's memory that vLLM may use, for weights and KV cache.", may_change=True
    )
    cpus_per_engine: float = setting(1.0, "Logical CPUs of an engine.", may_change=True, above=0)
    max_num_seqs: int = setting(
        256, "Sequences that an engine generates at a time.", may_change=True, least=1
    )
    kv_cache_gib: int = setting(1, "KV cache of an engine on CPU, in GiB.", may_change=True, least=1)
    groups_per_task: int | None = setting(
        None,
        "Groups of a block, which an engine takes at a time; by default so few that each engine has a block in "
        "every step.",
        may_change=True,
        least=1,
    )
    transport: str = setting(
        "object_store",
        "How weights reach the engines: `object_store`, or a class of your own, `file.py:Class`.",
        may_change=True,
    )
    transport_chunk_mb: int = setting(
        512, "Size of a piece of the weights on its way, in MiB.", may_change=True, least=1
    )
    resources: dict[str, float] = setting(dict, "Custom Ray resources of an engine.", may_change=True)
    timeout_s: float = setting(
        1800.0,
        "Deadline of everything that waits for rollouts, for the coordinator or for weights, in seconds.",
        may_change=True,
        above=0,
    )
    stall_timeout_s: float = setting(
        300.0,
        "An engine that makes no progress, or a silent coordinator, is killed after so many seconds.",
        may_change=True,
        above=0,
    )
    max_restarts: int = setting(
        10,
        "Restarts of each engine; after them the stream starts anew, which counts as a failure of the learners.",
        may_change=True,
        least=0,
    )


@dataclass
class LearnerSection:
    """The DeepSpeed learners and their optimizer (AdamW)."""

    num_workers: Any = setting(1, "Number of learners, or [min, max] for elastic training.", may_change=True)
    zero_stage: int = setting(2, "ZeRO stage of DeepSpeed.", may_change=True, choices=(0, 1, 2, 3))
    offload_optimizer: bool = setting(
        False, "Whether the optimizer's state is kept in CPU memory.", may_change=True
    )
    micro_batch_tokens: int = setting(
        16384, "Tokens of a micro-batch, padding included.", may_change=True, least=1
    )
    mini_batches: int = setting(1, "Updates per step; it must divide the groups of a step.", least=1)
    reference: str | None = setting(
        None, "Frozen model for algorithms that use a reference; by default model.path."
    )
    lr: float = setting(1e-6, "Peak learning rate.", above=0)
    lr_schedule: str = setting(
        "constant", "Learning rate after the warm-up.", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = setting(0, "Steps in which the learning rate rises linearly.", least=0)
    min_lr_ratio: float = setting(
        0.0, "Learning rate at the end of a linear or cosine schedule, as a share of lr.", least=0
    )
    betas: list[float] = setting([0.9, 0.999], "Adam's decay rates of the first and second moment.")
    eps: float = setting(1e-8, "Adam's epsilon.", above=0)
    weight_decay: float = setting(0.0, "Decoupled weight decay.", least=0)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this global norm.", above=0)
    activation_checkpointing: bool = setting(
        False, "Whether activations are recomputed in the backward pass to save memory.", may_change=True
    )
    logit_chunk_mb: int = setting(
        64, "Logits that exist at a time, in MiB of float32.", may_change=True, least=1
    )
    parity_threshold: float | None = setting(
        None,
        "Largest mean difference of log-probs between learner and engine on fresh rollouts, in nats. By default 1e-3 "
        "in float32, 0.1 in bfloat16 and float16.",
        may_change=True,
    )
    cpus_per_worker: float = setting(1.0, "Logical CPUs of a learner.", may_change=True, above=0)
    resources: dict[str, float] = setting(dict, "Custom Ray resources of a learner.", may_change=True)
    timeout_s: float = setting(
        1800.0, "Deadline of a collective between learners, in seconds.", may_change=True, above=0
    )
    start_timeout_s: float = setting(
        600.0, "Deadline for learners to be placed and to start, in seconds.", may_change=True, above=0
    )
    resize_interval_s: float = setting(
        60.0, "How often elastic training looks for nodes that joined, in seconds.", may_change=True, above=0
    )


@dataclass
class TrainerSection:
    """Steps, checkpoints, evaluation, and how much may fail."""

    steps: int = setting(
        100, "Number of steps. A run may be lengthened if the steps done do not depend on it.", least=1
    )
    groups_per_step: int = setting(16, "Groups (prompts) of each step.", least=1)
    first_group: int = setting(
        0, "Position in the seeded order of prompts where step 0 begins: where an earlier run ended.", least=0
    )
    checkpoint_every: int = setting(
        0, "Steps between checkpoints; 0 writes one after the last step only.", may_change=True, least=0
    )
    checkpoint_path: str | None = setting(
        None,
        "Directory or URI (s3://, gs://, …) that holds a folder of checkpoints named `run.name`; by default the run "
        "directory.",
    )
    keep_checkpoints: int | None = setting(
        None, "Newest checkpoints that are kept; by default all.", may_change=True, least=1
    )
    keep_every: int | None = setting(
        None, "Checkpoints of steps that are a multiple of this are kept too.", may_change=True, least=1
    )
    keep_best: str | None = setting(
        None,
        "The best checkpoint by this metric (such as reward/mean) or evaluation set (its avg@k) is kept too; higher "
        "is better.",
        may_change=True,
    )
    max_checkpoint_failures: int = setting(
        2, "Failed writes of checkpoints in a row that are only reported.", may_change=True, least=0
    )
    evaluate_every: int = setting(
        0,
        "Steps between evaluations, also before the first and after the last step; 0 never evaluates.",
        least=0,
    )
    on_nonfinite: str = setting(
        "stop",
        "What follows an update whose loss, log-probs, advantages or gradient are infinite or not a number. It "
        "is never applied. `stop` ends the run without a checkpoint, `skip` goes on with the next step; of a step "
        "with several updates those before it stay.",
        may_change=True,
        choices=("stop", "skip"),
    )
    max_nonfinite: int = setting(
        3, "Steps in a row that on_nonfinite=skip may skip; one more ends the run.", may_change=True, least=0
    )
    max_failures: int = setting(3, "Restarts of the learners after failures.", may_change=True, least=0)
    resize_timeout_s: float = setting(
        300.0,
        "How long a change of the number of learners waits for their checkpoint, in seconds.",
        may_change=True,
        above=0,
    )
