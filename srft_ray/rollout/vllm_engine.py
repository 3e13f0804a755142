"""A vLLM engine with continuous batching over callers in many threads. The only file that imports vllm.

vLLM's own asynchronous engine runs in a process of its own; in this one the same step loop runs in a thread, which
starts in seconds and is faster for small models. With VLLM_ENABLE_V1_MULTIPROCESSING=1 the core is a process again.
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft_ray.config.schema import ModelSection
from srft_ray.config.training import RolloutSection


@dataclass(frozen=True)
class Sampling:
    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True)
class Generation:
    """One sampled sequence: ids with their log-probs at the sampling temperature (nats), `stop` or `length`."""

    ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str


class Engine:
    """Thread-safe: `generate` may be called from any number of threads; their sequences share the engine's batches."""

    def __init__(
        self, model: ModelSection, rollout: RolloutSection, seed: int, device: str, dtype: str
    ) -> None:
        set_environment(rollout, device)
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        special: dict[str, Any] = {"gpu_memory_utilization": rollout.gpu_memory_utilization}
        if (
            device == "cpu"
        ):  # vLLM rewinds the generator of a seeded sequence between chunks of its prompt: a CPU generator cannot
            special = {
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(8192, model.max_length),
            }
        self._llm = LLMEngine.from_engine_args(
            EngineArgs(
                model=model.path,
                dtype=dtype,
                max_model_len=model.max_length,
                max_num_seqs=rollout.max_num_seqs,
                tensor_parallel_size=rollout.tensor_parallel,
                seed=seed,
                distributed_executor_backend="uni" if rollout.tensor_parallel == 1 else "mp",
                logprobs_mode="processed_logprobs",
                trust_remote_code=model.trust_remote_code,
                disable_log_stats=True,
                **special,
            )
        )
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Generation]] = {}
        self._number = 0
        self.steps = 0  # of vLLM: a sign of progress
        self._thread = threading.Thread(target=self._loop, name="vllm-step-loop", daemon=True)
        self._thread.start()
        self.generate([[0]], [0], Sampling(1.0, 1.0, 2))  # the first generation compiles kernels

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        used: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Samples one sequence for each prompt and seed; returns when all have finished.

        `used` says how many tokens of each prompt belong to the response, and count for sampling.max_new_tokens.
        """
        futures: list[Future[Generation]] = [Future() for _ in prompts]
        limits = [sampling.max_new_tokens - n for n in used or [0] * len(prompts)]
        self._commands.put(lambda: self._add(prompts, seeds, sampling, limits, futures))
        return [future.result() for future in futures]

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, as in a generation."""
        return self._llm.get_tokenizer().decode(ids, skip_special_tokens=True)

    def load(self, folder: Path) -> None:
        """Replaces the weights by the safetensors files in `folder`. No sequence may be in flight."""
        done: Future[None] = Future()

        def reload() -> None:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self._llm.reset_prefix_cache()

        self._commands.put(lambda: _settle(done, reload))
        done.result()

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join(timeout=30)

    def _loop(self) -> None:
        """Runs commands, then steps the engine while sequences are in flight; waits when there is nothing to do."""
        try:
            while True:
                while not self._waiting or not self._commands.empty():
                    command = self._commands.get()
                    if command is None:
                        return
                    command()
                outputs = self._llm.step()
                self.steps += 1
                for output in outputs:
                    if output.finished:
                        self._waiting.pop(output.request_id).set_result(_generation(output))
        except (
            BaseException
        ) as error:  # the callers wait on futures: they get the engine's death, not silence
            for future in self._waiting.values():
                future.set_exception(error)
            raise

    def _add(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        limits: Sequence[int],
        futures: list[Future[Generation]],
    ) -> None:
        from vllm import SamplingParams

        for ids, seed, limit, future in zip(prompts, seeds, limits, futures, strict=True):
            self._number += 1
            request_id = str(self._number)
            params = SamplingParams(
                max_tokens=limit,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed,
                logprobs=0,
            )
            try:
                self._llm.add_request(request_id, {"prompt_token_ids": list(ids)}, params)
                self._waiting[request_id] = future
            except ValueError as error:
                future.set_exception(error)


def _generation(output: Any) -> Generation:
    best = output.outputs[0]
    ids = list(best.token_ids)
    logprobs = [position[token].logprob for position, token in zip(best.logprobs, ids, strict=True)]
    return Generation(ids, logprobs, best.text, best.finish_reason)


def _settle(future: "Future[None]", action: Callable[[], None]) -> None:
    try:
        action()
        future.set_result(None)
    except Exception as error:
        future.set_exception(error)


def set_environment(rollout: RolloutSection, device: str) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if device == "cpu":
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(rollout.kv_cache_gib)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        import torch._dynamo.config

        torch._dynamo.config.disable = (
            True  # compiling with a C++ compiler would take longer than it could ever save
        )
