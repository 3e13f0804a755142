"""The section of the rollouts."""

from dataclasses import dataclass
from typing import Any

from srft_ray.config.settings import setting


@dataclass
class RolloutSection:
    """The vLLM engines and how they sample."""

    num_engines: Any = setting(1, "Number of engines; [min, max] makes the pool elastic.", may_change=True)
    num_rollouts: int = setting(8, "Rollouts sampled for each prompt.", least=1)
    max_new_tokens: int = setting(512, "Longest response, in tokens.", least=1)
    temperature: float = setting(
        1.0, "Sampling temperature; the learner divides its logits by it too.", above=0
    )
    top_p: float = setting(
        1.0, "Must be 1: log-probs of a truncated distribution are not those of the policy that is trained."
    )
    stop: list[str] = setting(
        list,
        "Texts that end a response, or with an environment a turn; they stay in it. Beside them the model's "
        "end-of-sequence token ends a response.",
    )
    environment: str | None = setting(
        None,
        "Rollouts of several turns: a function `(response, reference, metadata) -> text or None`, as "
        "`file.py:function`. It is called when a turn ended with one of rollout.stop, with the response so "
        "far, in a verifier process. Its text is added to the response, which then goes on; None ends it.",
    )
    max_turns: int = setting(8, "Turns of one response, with an environment.", least=1)
    max_staleness: int = setting(
        0,
        "Number of versions by which the policy of a rollout may be older than the one that is trained. 0 is "
        "on-policy; above 0, engines sample for later steps while learners train.",
        least=0,
    )
    in_flight: bool = setting(
        False,
        "Engines load newer weights while sequences are in flight, which go on with them: the KV cache of "
        "their tokens so far is computed anew, and the ledger says which version sampled which tokens. It "
        "needs max_staleness above 0 and an algorithm with `old: behavior` or a `correction`.",
    )
    dtype: str = setting(
        "auto",
        "Number format of the engines. `auto` is that of the learners (model.dtype).",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    tensor_parallel: int = setting(1, "GPUs of one engine.", may_change=True, least=1)
    gpus_per_engine: float = setting(
        1.0, "Share of a GPU that an engine reserves when tensor_parallel is 1.", may_change=True, above=0
    )
    gpu_memory_utilization: float | None = setting(
        None,
        "Share of the GPU's memory that vLLM may use for weights and KV cache; by default 0.85, and 0.4 "
        "beside a learner (cluster.placement).",
        may_change=True,
        above=0,
        most=1,
    )
    cpus_per_engine: float = setting(1.0, "Logical CPUs that an engine reserves.", may_change=True, above=0)
    engine: dict[str, Any] = setting(
        dict,
        "Further arguments of vLLM's engine (its `EngineArgs`), such as `{block_size: 32}`. "
        "Arguments that other settings decide are refused; so is `kv_cache_memory_bytes` beside a learner.",
        may_change=True,
    )
    max_num_seqs: int = setting(
        256, "Sequences that an engine generates at the same time.", may_change=True, least=1
    )
    kv_cache_gib: int = setting(1, "KV cache of an engine on CPU, in GiB.", may_change=True, least=1)
    groups_per_task: int | None = setting(
        None,
        "Number of groups in a block; an engine processes a block as a whole. By default small enough that "
        "the engines share every step evenly, and have several in a step if groups are refilled.",
        may_change=True,
        least=1,
    )
    transport: str = setting(
        "object_store",
        "How weights reach the engines: `object_store`; `collective`, by which learners send them to all "
        "nodes at the same time, before engines ask for them; or a class of your own, `file.py:Class`.",
        may_change=True,
    )
    transport_backend: str = setting(
        "auto",
        "What the collective transport sends with: `gloo`, `nccl`, or `auto`, which is nccl where learners "
        "and engines have GPUs of their own, and else gloo.",
        may_change=True,
        choices=("auto", "gloo", "nccl"),
    )
    transport_deadline_s: float = setting(
        60.0,
        "Seconds that the collective transport may take for a publication. Nodes that do not have the "
        "weights then load them from the object store. With every transport: for so long an engine waits "
        "while another process of its node, which is to write the weights for both, writes nothing.",
        may_change=True,
        above=0,
    )
    transport_chunk_mb: int = setting(
        512,
        "Size of the pieces in which weights are sent, in MiB. A learner keeps memory for one.",
        may_change=True,
        least=1,
    )
    resources: dict[str, float] = setting(
        dict, "Custom Ray resources that an engine reserves.", may_change=True
    )
    timeout_s: float = setting(
        1800.0,
        "Deadline for every wait for rollouts, for the coordinator or for weights, in seconds.",
        may_change=True,
        above=0,
    )
    stall_timeout_s: float = setting(
        300.0,
        "Seconds without progress of an engine, or without an answer of the coordinator, after which it is "
        "killed.",
        may_change=True,
        above=0,
    )
    max_restarts: int = setting(
        -1,
        "Restarts of each engine between two starts of the learners; -1 sets no limit. After them the "
        "learners start again, which counts for trainer.max_failures. Engines that die again and again at "
        "the same point end the run, whatever this limit.",
        may_change=True,
        least=-1,
    )
