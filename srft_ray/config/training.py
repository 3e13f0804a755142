"""The training sections of the config: learner and trainer."""

from dataclasses import dataclass
from typing import Any

from srft_ray.config.settings import setting


@dataclass
class LoraSection:
    """Adapters of low rank (LoRA), which are trained in the place of the model's weights."""

    rank: int | None = setting(
        None,
        "Rank of the adapters; by default there are none, and all weights are trained. With adapters only "
        "these are published to the engines. They have no dropout, because updates are exact.",
        least=1,
        most=512,
    )
    alpha: float = setting(
        32.0, "The product of an adapter's matrices is multiplied by alpha / rank.", above=0
    )
    targets: list[str] = setting(
        list,
        "Names of the linear layers that get one, such as `[q_proj, v_proj]`; by default all but the head.",
    )


@dataclass
class LearnerSection:
    """The DeepSpeed learners and their optimizer (AdamW)."""

    num_workers: Any = setting(1, "Number of learners; [min, max] makes training elastic.", may_change=True)
    gpus_per_worker: float = setting(
        1.0,
        "GPUs, or share of one, that a learner reserves where it has them for itself.",
        may_change=True,
        above=0,
    )
    zero_stage: int = setting(2, "ZeRO stage of DeepSpeed.", may_change=True, choices=(0, 1, 2, 3))
    offload_optimizer: bool = setting(
        False,
        "Whether the optimizer state is kept in CPU memory; needs zero_stage 1, 2 or 3.",
        may_change=True,
    )
    deepspeed: dict[str, Any] = setting(
        dict,
        "Further settings of DeepSpeed, named as in its own JSON file, such as "
        "`zero_optimization: {reduce_bucket_size: 50000000, offload_param: {device: cpu}}`. Settings that "
        "decide the update are refused.",
        may_change=True,
    )
    micro_batch_tokens: int = setting(
        16384,
        "Largest number of tokens in a micro-batch, including padding; there are more micro-batches where "
        "that saves padding.",
        may_change=True,
        least=1,
    )
    packing: bool = setting(False, "Whether a row may hold several sequences (packing).", may_change=True)
    mini_batches: int = setting(
        1, "Updates per step; it must divide the number of groups of a step.", least=1
    )
    lora: LoraSection = setting(LoraSection, "Adapters of low rank (LoRA).")
    reference: str | None = setting(
        None, "Frozen model for algorithms that use a reference; by default model.path."
    )
    critic: str | None = setting(
        None,
        "Model whose decoder the critic begins with, for algorithms that have one; by default model.path.",
    )
    critic_lr: float = setting(1e-5, "Learning rate of the critic, in all steps.", above=0)
    lr: float = setting(1e-6, "Peak learning rate.", above=0)
    lr_schedule: str = setting(
        "constant", "Learning rate after the warm-up.", choices=("constant", "linear", "cosine")
    )
    warmup_steps: int = setting(0, "Number of steps in which the learning rate rises linearly.", least=0)
    min_lr_ratio: float = setting(
        0.0, "Learning rate at the end of a linear or cosine schedule, as a fraction of lr.", least=0
    )
    betas: list[float] = setting(
        [0.9, 0.999], "Adam's decay rates of the first and the second moment, each in [0, 1)."
    )
    eps: float = setting(1e-8, "Adam's epsilon.", above=0)
    weight_decay: float = setting(0.0, "Weight decay, decoupled from the gradient (AdamW).", least=0)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this global norm.", above=0)
    activation_checkpointing: bool | None = setting(
        None,
        "Whether activations are recomputed in the backward pass, which saves memory and costs a third more "
        "time; by default only where learners share GPUs with engines (cluster.placement).",
        may_change=True,
    )
    logit_chunk_mb: int | None = setting(
        None,
        "MiB of float32 logits at a time; by default of 384 tokens, at least 64.",
        may_change=True,
        least=1,
    )
    parity_threshold: float | None = setting(
        None,
        "Largest allowed mean difference between the log-probs of learner and engine on rollouts of the "
        "current version, in nats. By default 1e-3 in float32, 0.1 in bfloat16.",
        may_change=True,
    )
    cpus_per_worker: float = setting(1.0, "Logical CPUs that a learner reserves.", may_change=True, above=0)
    resources: dict[str, float] = setting(
        dict, "Custom Ray resources that a learner reserves.", may_change=True
    )
    timeout_s: float = setting(
        1800.0, "Deadline of a collective operation of the learners, in seconds.", may_change=True, above=0
    )
    start_timeout_s: float = setting(
        600.0, "Time in which learners must be placed and start, in seconds.", may_change=True, above=0
    )
    resize_interval_s: float = setting(
        60.0,
        "Time between two checks for nodes that joined, in seconds; only for elastic training.",
        may_change=True,
        above=0,
    )


@dataclass
class TrainerSection:
    """Steps, checkpoints, evaluation, and how much may fail."""

    steps: int = setting(
        100, "Number of steps. A run may be lengthened if the steps done so far do not depend on it.", least=1
    )
    groups_per_step: int = setting(
        16,
        "Groups (prompts with their completions) of each step; a multiple of every number of learners.",
        least=1,
    )
    first_group: int = setting(
        0,
        "Position in the seeded order of prompts where step 0 begins, for a run that goes on where another "
        "ended.",
        least=0,
    )
    checkpoint_every: int = setting(
        0,
        "Steps between checkpoints; with 0 only the last step is followed by one.",
        may_change=True,
        least=0,
    )
    async_checkpoints: bool = setting(
        False,
        "Whether training goes on while a checkpoint is written, from a copy in CPU memory: each learner's "
        "share of the state (12 bytes of a parameter, divided by the learners) and of the weights, which the "
        "first has alone if they are less than 1 GiB. It counts, and is recorded, when it is complete, some "
        "steps later. At most one is being written: learners that stop, or reach the next one, wait for it. "
        "Half of learner.timeout_s after it was begun it must be complete.",
        may_change=True,
    )
    checkpoint_path: str | None = setting(
        None,
        "Directory or URI (s3://, gs://, …) that holds a folder of checkpoints named `run.name`; by default "
        "the run directory.",
    )
    keep_checkpoints: int | None = setting(
        None, "Number of newest checkpoints that are kept; by default all.", may_change=True, least=1
    )
    keep_every: int | None = setting(
        None,
        "Checkpoints after a multiple of this number of steps are kept too; needs keep_checkpoints.",
        may_change=True,
        least=1,
    )
    keep_best: str | None = setting(
        None,
        "The checkpoint with the best value of this metric (such as reward/mean), the best avg@k of this "
        "evaluation set, or the best figure of one (such as eval/heldout/entropy) is kept too; needs "
        "keep_checkpoints or patience.",
        may_change=True,
    )
    keep_best_mode: str = setting(
        "max",
        "What is best: the highest value, the lowest, or one within keep_best_band. Of several the newest is "
        "kept, and of none within the band the nearest, such as the last SFT checkpoint whose entropy is not "
        "low yet.",
        may_change=True,
        choices=("max", "min", "band"),
    )
    keep_best_band: list[float] = setting(
        list, "Lowest and highest value of keep_best_mode=band.", may_change=True
    )
    patience: int | None = setting(
        None,
        "Early stopping: training ends when so many evaluations in a row were not better by keep_best, which "
        "must be a figure of an evaluation set, such as eval/heldout/demo_loss with keep_best_mode=min. The "
        "best checkpoint is the run's model, also if training reaches the last step. Every evaluation needs "
        "a checkpoint. By default training goes on to the last step, whose checkpoint is the model.",
        may_change=True,
        least=1,
    )
    max_checkpoint_failures: int = setting(
        2,
        "Failed checkpoints in a row that are only reported; one more ends the run.",
        may_change=True,
        least=0,
    )
    evaluate_every: int = setting(
        0,
        "Steps between evaluations; there is also one before the first and one after the last step. 0 never "
        "evaluates. With rollout.max_staleness above 0 engines sample them while learners train, unless "
        "patience is set.",
        least=0,
    )
    on_nonfinite: str = setting(
        "stop",
        "What follows an update whose loss, log-probs, advantages or gradient are infinite or not a "
        "number. It is never applied. `stop` ends the run without a checkpoint, `skip` goes on with the "
        "next step; of a step with several updates those before it stay.",
        may_change=True,
        choices=("stop", "skip"),
    )
    max_nonfinite: int = setting(
        3, "Steps in a row that on_nonfinite=skip may skip; one more ends the run.", may_change=True, least=0
    )
    max_failures: int = setting(
        3,
        "Restarts of the learners after failures. One more failure ends the run, or begins the count anew if "
        "the run has saved a checkpoint since the count began.",
        may_change=True,
        least=0,
    )
    resize_timeout_s: float = setting(
        300.0,
        "How long a change of the number of learners waits for the checkpoint of the present ones, in "
        "seconds.",
        may_change=True,
        above=0,
    )

    @property
    def stopping_rule(self) -> dict[str, Any] | None:
        """What decides when training stops early; None if nothing does."""
        if self.patience is None:
            return None
        names = ("patience", "keep_best", "keep_best_mode", "keep_best_band")
        return {name: getattr(self, name) for name in names}
