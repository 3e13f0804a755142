"""The section of the config that describes the hardware, for `srft-ray plan` alone."""

from dataclasses import dataclass

from srft_ray.config.settings import setting


@dataclass
class HardwareSection:
    """Figures of your hardware for the estimates of `srft-ray plan`; training does not use them."""

    gpu_memory_gib: float | None = setting(
        None,
        "Memory of a GPU, in GiB; by default that of this machine's GPUs. `srft-ray plan` refuses what does "
        "not fit.",
        may_change=True,
        above=0,
    )

    learner_tflops: float | None = setting(
        None,
        "Peak speed of one learner's device in model.dtype, in 1e12 operations per second.",
        may_change=True,
        above=0,
    )
    utilization: float | None = setting(
        None,
        "Share of that peak that the learner reaches (model FLOPs utilization, MFU).",
        may_change=True,
        above=0,
        most=1,
    )
    engine_tokens_per_s: float | None = setting(
        None, "Tokens per second that one engine generates with a full batch.", may_change=True, above=0
    )
    engine_token_ms: float | None = setting(
        None,
        "Time between two tokens of one sequence in an engine, in milliseconds.",
        may_change=True,
        above=0,
    )
    network_gb_per_s: float | None = setting(
        None,
        "Rate at which weights travel from the learners to the engines, in 1e9 bytes per second.",
        may_change=True,
        above=0,
    )
    mean_prompt_tokens: float | None = setting(
        None, "Mean length of a prompt, in tokens.", may_change=True, above=0
    )
    mean_response_tokens: float | None = setting(
        None, "Mean length of a rollout or demonstration, in tokens.", may_change=True, above=0
    )
