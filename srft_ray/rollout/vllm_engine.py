"""A vLLM engine with continuous batching over callers in many threads. The only file that imports vllm.

The engine's core runs in this process, on CPU and on GPUs: its death is that of the actor. Under tensor
parallelism its workers are processes of their own, which end with the actor (`engine_process`).
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LoraSection
from srft_ray.imports import large_imports
from srft_ray.rollout.adapter import adapter_folder
from srft_ray.rollout.engine_settings import (
    cache_settings,
    engine_settings,
    set_environment,
    settle_thread,
)
from srft_ray.rollout.generation import Generation, Sampling
from srft_ray.rollout.step_loop import StepLoop
from srft_ray.sync.probe import probe_ids


class Engine:
    """Thread-safe: `generate` may be called from any number of threads; their sequences share batches."""

    def __init__(
        self,
        model: ModelSection,
        rollout: RolloutSection,
        seed: int,
        device: str,
        dtype: str,
        threads: int | None = None,
        lora: LoraSection | None = None,
        beside_cache: int | None = None,
    ) -> None:
        """
        Args:
            threads: of the loop that steps the engine, on CPU; None for as many as the process has.
            lora: the adapter that `load` brings; None if it brings all weights.
            beside_cache: as of `cache_settings`; None: vLLM measures what its GPU has for the cache.
        """
        set_environment(rollout, device)
        with large_imports():
            from vllm import EngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.llm_engine import LLMEngine

        settings = engine_settings(model, rollout, device, lora) | rollout.engine
        if beside_cache is not None:
            settings |= cache_settings(rollout, current_platform.get_device_total_memory(), beside_cache)
        settle_thread(threads, device)
        self._llm = LLMEngine.from_engine_args(EngineArgs(dtype=dtype, seed=seed, **settings))
        self._llm.collective_rpc("end_with_actor", args=(os.getpid(),))
        self.loads = 0  # that `load` did, by which vLLM notes for each token which weights sampled it
        self._llm.set_weight_version("0")
        self._lora = lora
        self._in_flight = rollout.in_flight
        self._scored = ()  # the probe, by `load`
        self._adapted = _Adapted(self._llm)
        self._loop = StepLoop(self._adapted)
        self._loop.run(partial(settle_thread, threads, device))
        # The first generation compiles kernels.
        self.generate([[0]], [0], Sampling(1.0, 1.0, 2))

    @property
    def steps(self) -> int:
        """Steps of vLLM so far: a sign of progress."""
        return self._loop.steps

    @property
    def updates_in_flight(self) -> bool:
        """Whether sequences in flight go on with what `load` brings.

        Those that were begun without an adapter would go on without one.
        """
        return self._in_flight and (self._lora is None or self.loads > 0)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        used: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """Samples one sequence for each prompt (token ids) and seed; yields (number of the prompt,
        generation) in the order in which they finish. The caller must take all of them.

        Args:
            used: tokens of each prompt that belong to the response, and count for sampling.max_new_tokens.

        Raises:
            Exception: vLLM's own error. It refused one of the sequences, which is said when the others have
                finished, or the engine is broken.
        """
        lengths = used if used is not None else [0] * len(prompts)
        requests = [
            ({"prompt_token_ids": list(ids)}, _sampling_params(sampling, seed, length))
            for ids, seed, length in zip(prompts, seeds, lengths, strict=True)
        ]
        for number, output in self._loop.stream(requests):
            yield number, self._generation(output, requests[number][1])

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Generation]:
        """As `stream`, in the order of the prompts, when all have finished."""
        generations = dict(self.stream(prompts, seeds, sampling))
        return [generations[number] for number in range(len(prompts))]

    def score_probe(self) -> tuple[float, ...]:
        """Log-probs in nats of the probe's tokens but the first, at temperature 1 (`sync.probe`)."""
        scored, self._scored = self._scored, ()
        return scored or self._score()

    def _score(self, before: Callable[[], None] | None = None) -> tuple[float, ...]:
        from vllm import SamplingParams

        config = self._llm.model_config
        ids = probe_ids(config.get_vocab_size(), config.max_model_len)
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        [output] = self._loop.sample([({"prompt_token_ids": ids}, params)], before)
        scored = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        return tuple(position[token].logprob for position, token in scored)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, without special tokens."""
        return self._llm.get_tokenizer().decode(ids, skip_special_tokens=True)

    def encode(self, text: str) -> list[int]:
        """A text as token ids, without special tokens around it."""
        return self._llm.get_tokenizer().encode(text, add_special_tokens=False)

    def load(self, folder: Path) -> None:
        """Replaces the weights, or the adapter, by the safetensors files in `folder`.

        No sequence may be in flight, unless `updates_in_flight`.
        """
        if self._in_flight:  # the probe is scored now: once sequences go on, there may be no place for it
            self._scored = self._score(partial(self._reload, folder))
        else:
            self._loop.run(partial(self._reload, folder))

    def _reload(self, folder: Path) -> None:
        # A core in a process of its own would go on with what is half replaced.
        self._llm.sleep(level=0, mode="keep")
        if self._lora:
            with adapter_folder(folder, self._lora) as adapter:
                self._adapted.load(adapter)
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        # What the old weights computed must not be used again, for prompts or for sequences in flight.
        self._llm.reset_prefix_cache(reset_running_requests=True)
        self.loads += 1
        self._llm.set_weight_version(str(self.loads))
        self._llm.wake_up(["scheduling"])

    def _generation(self, output: Any, params: Any) -> Generation:
        best = output.outputs[0]
        ids = list(best.token_ids)
        logprobs = list(best.logprobs.logprobs)
        if best.logprobs.token_ids != ids:
            raise RuntimeError("vLLM returned log-probs of other tokens than those that it sampled.")
        stop = best.stop_reason if isinstance(best.stop_reason, str) else None
        text = best.text
        if not params.detokenize:
            text = self._decode(output.prompt_token_ids, params, ids, best.finish_reason)
        loads = tuple((int(span.version), span.start) for span in best.weight_versions)
        return Generation(ids, logprobs, text, best.finish_reason, stop, loads=loads)

    def _decode(self, prompt_ids: Sequence[int], params: Any, ids: list[int], finish_reason: str) -> str:
        """The text that vLLM would have given, in the thread that asks for it."""
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        request = EngineCoreRequest(
            request_id="",
            prompt_token_ids=prompt_ids,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        detokenizer = IncrementalDetokenizer.from_new_request(self._llm.get_tokenizer(), request)
        detokenizer.update(ids, finish_reason == "stop")
        return detokenizer.get_next_output_text(finished=True, delta=False)

    def close(self) -> None:
        """Ends the loop; the engine itself ends with the process."""
        self._loop.close()


class _Adapted:
    """vLLM's engine, which samples every sequence with the adapter that was loaded last, if any."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._request: Any = None

    def load(self, folder: str) -> None:
        from vllm.lora.request import LoRARequest

        self._llm.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
        # Of the adapter that is there: nothing is read again.
        self._request = LoRARequest("policy", 1, folder)

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        # Only the probe scores a prompt. With updates in flight it comes before all sequences.
        priority = 0 if params.prompt_logprobs is None else -1
        self._llm.add_request(request_id, prompt, params, lora_request=self._request, priority=priority)

    def step(self) -> Sequence[Any]:
        return self._llm.step()


def engine_arguments() -> list[str]:
    """Names of all arguments of an engine of vLLM."""
    from vllm import EngineArgs

    return [field.name for field in dataclasses.fields(EngineArgs)]


def _sampling_params(sampling: Sampling, seed: int, used: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_new_tokens - used,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        logprobs=0,  # of the sampled token only
        # One output for each sequence, with flat log-probs: otherwise vLLM makes objects for every token.
        output_kind=RequestOutputKind.FINAL_ONLY,
        flat_logprobs=True,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        # Whoever takes the sequence decodes it, in another thread. Only texts to stop at are looked for here.
        detokenize=bool(sampling.stop),
    )
