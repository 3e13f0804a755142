"""The verifier processes of one engine: those of the run, and those of evaluation sets with another
verifier."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from srft_ray.config.evaluation import EvaluationSetSection
from srft_ray.config.schema import VerifierSection
from srft_ray.verify import VerifierPool


class Judges:
    """One `VerifierPool` for each verifier. That of the run starts at once, the others when needed."""

    def __init__(
        self,
        section: VerifierSection,
        function: Callable[..., Any] | None,
        evaluation: Mapping[str, EvaluationSetSection],
    ) -> None:
        """`function` is a verifier given from Python, in the place of the section's."""
        self._default = make_verifier_pool(section, function)
        self._sections = {
            name: settings.judge(section) for name, settings in evaluation.items() if settings.verifier
        }
        self._pools: dict[tuple[str, str | None], VerifierPool] = {}
        self._lock = threading.Lock()

    def of(self, dataset: str) -> VerifierPool:
        """The pool that judges responses of `train`, or of an evaluation set."""
        section = self._sections.get(dataset)
        if section is None:
            return self._default
        key = (section.name, section.path)
        with self._lock:
            if key not in self._pools:
                self._pools[key] = make_verifier_pool(section)
            return self._pools[key]


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
