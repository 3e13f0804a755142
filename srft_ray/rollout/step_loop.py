"""The loop that steps an engine, in a thread of its own, for callers in many threads."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

CLOSE_TIMEOUT_S = 30.0


class SteppedEngine(Protocol):
    """What the loop needs of vLLM's LLMEngine."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> Any:
        """Takes one sequence to sample; raises for one that it refuses."""

    def step(self) -> Sequence[Any]:
        """Samples the next token of each sequence; returns outputs with `request_id` and `finished`."""


@dataclass(frozen=True)
class _Command:
    """What a caller wants done between two steps, and the futures that it waits for."""

    run: Callable[[], None]
    futures: Sequence[Future[Any]]


class StepLoop:
    """Callers' sequences share the engine's batches. The engine is touched by the loop's thread only.

    Attributes:
        steps: steps done so far; a sign of progress.
    """

    def __init__(self, engine: SteppedEngine) -> None:
        self.steps = 0
        self._engine = engine
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._running: dict[str, Future[Any]] = {}
        self._requests = 0
        self._failure: BaseException | None = None
        # Held while a command is queued and while the loop ends, so that no command is queued behind the end.
        self._queueing = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="vllm-step-loop", daemon=True)
        self._thread.start()

    def stream(
        self, requests: Sequence[tuple[Any, Any]], before: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Samples all requests, each a (prompt, parameters); yields (number of the request, finished output)
        in the order in which they finish. Take all of them: the engine finishes what nobody takes, too.

        Args:
            before: is run before the engine gets the requests, and no step comes between.

        Raises:
            Exception: the engine's own error, for one of these requests or of the whole engine, or that of
                `before`.
        """
        futures: list[Future[Any]] = [Future() for _ in requests]
        ended: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        for number, future in enumerate(futures):
            future.add_done_callback(partial(_announce, ended, number))
        self._submit(_Command(lambda: self._add(requests, futures, before), futures))
        for _ in futures:
            number, future = ended.get()
            if future.exception() is None:
                yield number, future.result()
        # If one is refused, the others are waited for all the same: whoever loads weights relies on an engine
        # that has no sequences of callers that have left.
        for future in futures:
            future.result()

    def sample(
        self, requests: Sequence[tuple[Any, Any]], before: Callable[[], None] | None = None
    ) -> list[Any]:
        """The finished outputs of all requests, in their order. As `stream`, when all have finished."""
        outputs = dict(self.stream(requests, before))
        return [outputs[number] for number in range(len(requests))]

    def run(self, action: Callable[[], None]) -> None:
        """Runs `action` in the loop's thread between two steps.

        Raises:
            Exception: what the action raised, or why the loop ended.
        """
        done: Future[None] = Future()
        self._submit(_Command(lambda: _settle(done, action), [done]))
        done.result()

    def close(self) -> None:
        """Ends the loop; whoever still waits for a sequence gets an error."""
        self._commands.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _submit(self, command: _Command) -> None:
        with self._queueing:
            if self._failure is not None:
                raise self._failure
            self._commands.put(command)

    def _loop(self) -> None:
        try:
            while self._run_commands():
                self._step()
            self._end(RuntimeError("The engine was closed."))
        except BaseException as error:
            self._end(error)

    def _run_commands(self) -> bool:
        """Runs all queued commands; waits for one if nothing is to be stepped. False: the loop is to end."""
        # Commands come before the next step, so that new sequences join its batch.
        while not self._running or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command.run()
        return True

    def _step(self) -> None:
        outputs = self._engine.step()
        self.steps += 1
        for output in outputs:
            if output.finished:
                self._running.pop(output.request_id).set_result(output)

    def _add(
        self,
        requests: Sequence[tuple[Any, Any]],
        futures: Sequence[Future[Any]],
        before: Callable[[], None] | None,
    ) -> None:
        if before is not None:
            try:
                before()
            except Exception as error:
                for future in futures:
                    future.set_exception(error)
                return
        for (prompt, params), future in zip(requests, futures, strict=True):
            self._requests += 1
            request_id = str(self._requests)
            # What is raised here is about this request. If the engine is broken, its next step says so.
            try:
                self._engine.add_request(request_id, prompt, params)
            except Exception as error:
                future.set_exception(error)
            else:
                self._running[request_id] = future

    def _end(self, error: BaseException) -> None:
        """Passes the loop's end on to all who wait, and from now on to each caller at once."""
        with self._queueing:
            self._failure = error
        for future in self._running.values():
            future.set_exception(error)
        while not self._commands.empty():
            command = self._commands.get()
            for future in command.futures if command else ():
                future.set_exception(error)


def _announce(ended: queue.SimpleQueue[tuple[int, Future[Any]]], number: int, future: Future[Any]) -> None:
    ended.put((number, future))


def _settle(future: Future[None], action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(None)
