"""The verifier processes of one engine: those of the run, and those of evaluation sets with another
verifier."""

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from srft_ray.config.evaluation import EvaluationSetSection
from srft_ray.config.schema import VerifierSection
from srft_ray.verify import Item, Verdict, VerifierPool
from srft_ray.verify.verifier import ENVIRONMENT


class Judge:
    """Gives a `VerifierPool` the responses of all blocks, while engines still sample others.

    The pool gets at a time whatever has come while it was busy, so that a call is for many responses where
    many come.

    Attributes:
        answered: responses that have their verdict; a sign of progress.
    """

    def __init__(self, pool: VerifierPool) -> None:
        self.answered = 0
        self._pool = pool
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Verdict]]] = queue.SimpleQueue()
        threading.Thread(target=self._loop, name="judge", daemon=True).start()

    def submit(self, item: Item) -> Future[Verdict]:
        """Its verdict, when it is there. The future raises what the pool raised."""
        verdict: Future[Verdict] = Future()
        self._waiting.put((item, verdict))
        return verdict

    def _loop(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while not self._waiting.empty():  # nobody else takes from it
                batch.append(self._waiting.get())
            self._verify(batch)

    def _verify(self, batch: list[tuple[Item, Future[Verdict]]]) -> None:
        futures = [future for _, future in batch]
        try:
            verdicts = self._pool.verify([item for item, _ in batch])
        except Exception as error:
            for future in futures:
                future.set_exception(error)
        else:
            self.answered += len(verdicts)
            for future, verdict in zip(futures, verdicts, strict=True):
                future.set_result(verdict)


class Judges:
    """One `Judge` for each verifier. That of the run starts at once, the others when needed."""

    def __init__(
        self,
        section: VerifierSection,
        function: Callable[..., Any] | None,
        evaluation: Mapping[str, EvaluationSetSection],
    ) -> None:
        """`function` is a verifier given from Python, in the place of the section's."""
        self._default = Judge(make_verifier_pool(section, function))
        self._sections = {
            name: settings.judge(section) for name, settings in evaluation.items() if settings.verifier
        }
        self._others: dict[tuple[str, str | None], Judge] = {}
        self._lock = threading.Lock()

    def of(self, dataset: str) -> Judge:
        """The one for responses of `train`, or of an evaluation set."""
        section = self._sections.get(dataset)
        if section is None:
            return self._default
        key = (section.name, section.path)
        with self._lock:
            if key not in self._others:
                self._others[key] = Judge(make_verifier_pool(section))
            return self._others[key]


def make_environment(path: str | None, section: VerifierSection) -> Judge | None:
    """The environment of rollouts of several turns, in processes that are bounded like the verifier's."""
    if path is None:
        return None
    return Judge(make_verifier_pool(replace(section, name=ENVIRONMENT, path=path)))


def make_verifier_pool(section: VerifierSection, function: Callable[..., Any] | None = None) -> VerifierPool:
    """The verifier processes of one engine; `function` is a verifier given from Python, in the place of the
    section's."""
    return VerifierPool(
        section.name,
        section.path,
        section.timeout_s,
        section.num_workers,
        section.memory_mb,
        function,
        network=section.network,
        environment=section.environment,
    )
