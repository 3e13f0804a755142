"""The actor of the rollout pool: one engine with its policy version and its verifiers."""

import copy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from algorithms import Completion, Group
from srft_ray.data.blocks import as_block
from srft_ray.data.reader import GroupReader
from srft_ray.observe.start import StartClock
from srft_ray.rollout.base_evaluation import BaseEvaluation
from srft_ray.rollout.credit import RefillPolicy, assign_credit, set_verdict
from srft_ray.rollout.engine_life import EngineLife
from srft_ray.rollout.generation import Generation, Sampling
from srft_ray.rollout.history import CoordinatorHistory
from srft_ray.rollout.judges import Judge, Judges, make_environment
from srft_ray.rollout.loaded_version import EngineWeights, LoadedVersion
from srft_ray.rollout.requests import Request, requests_of
from srft_ray.rollout.settings import RolloutSettings
from srft_ray.rollout.turns import converse
from srft_ray.rollout.vllm_engine import Engine
from srft_ray.sync.admission import Admission, question_name, wait_for_admission
from srft_ray.sync.fingerprint import folder_fingerprint, model_fingerprint
from srft_ray.sync.health import Heartbeat, send_heartbeats
from srft_ray.sync.processes import Process
from srft_ray.sync.transports import transport_class
from srft_ray.sync.versions import PolicyWeights
from srft_ray.verify import Item, Verdict


class RolloutWorker:
    """Turns blocks of positions into groups with rollouts, verdicts and credit.

    Ray Data calls it from several threads.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        reader: GroupReader,
        coordinator: Any,
        generation: int,
        base: BaseEvaluation,
    ) -> None:
        """`generation`: of the learners' start whose stream this worker belongs to."""
        clock = StartClock()
        self.coordinator = coordinator
        self.together = question_name(coordinator)  # all engines of the node ask under this name
        self._begin(settings, reader, generation, base)
        self.life = EngineLife(coordinator)
        self.loaded = LoadedVersion(
            EngineWeights(PolicyWeights(0)),
            self._load,
            settings.rollout.timeout_s,
            lambda: self.engine.updates_in_flight,
        )
        self.engine: Engine | None = None
        self.environment: Judge | None = None
        # Heartbeats begin before the engine loads, so that one that hangs while it loads is noticed too.
        beats = (coordinator, self._heartbeat)
        threading.Thread(target=send_heartbeats, args=beats, name="heartbeat", daemon=True).start()
        with self.life.ending_on_error():
            self.judges = Judges(settings.verifier, settings.verifier_function, settings.evaluation)
            self.environment = make_environment(settings.rollout.environment, settings.verifier)
            self.transport = transport_class(settings.rollout.transport)(coordinator, settings.rollout)
            self.engine = Engine(
                settings.model,
                settings.rollout,
                settings.seed,
                settings.device,
                settings.dtype,
                settings.threads,
                settings.lora,
                settings.beside_cache,
            )
            self._fingerprint = model_fingerprint(settings.model.path)
            self._probe = self._score_probe()
        self.loaded.weights = self._engine_weights(0)
        clock.mark("engine")
        self.clock = clock

    def _begin(
        self, settings: RolloutSettings, reader: GroupReader, generation: int, base: BaseEvaluation
    ) -> None:
        self.settings = settings
        self.reader = reader
        self.generation = generation
        self.base = base
        self.refills = RefillPolicy(reader)
        self.reader.history = self._make_history()

    def for_run(
        self, settings: RolloutSettings, reader: GroupReader, generation: int, base: BaseEvaluation
    ) -> "RolloutWorker":
        """The worker of a later run of the series, with the same engine and verifiers."""
        later = copy.copy(self)
        later._begin(settings, reader, generation, base)
        return later

    def write_start(self) -> None:
        """Adds the start of the engine to the timeline of the run."""
        if self.settings.run_dir:
            who = f"engine {self.life.process.engine[:8]}"
            self.clock.write(self.settings.run_dir, who, self.reader.start)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        groups = self.refills.refill_without_rollouts(self.reader.read(block))
        if any(group.num_rollouts for group in groups):
            self._roll_out(groups)
            self._refill(groups)
        self.life.finished += len(groups)
        assign_credit(groups, self.reader)
        return as_block(groups)

    def _make_history(self) -> CoordinatorHistory | None:
        """The history of prompts, if the algorithm chooses by it."""
        reader = self.reader
        if not reader.algorithm.uses_history:
            return None
        about = reader.train.counts.kept, reader.settings.history_lag, self.generation
        return CoordinatorHistory(self.coordinator, *about, self.settings.rollout.timeout_s, self.together)

    def _refill(self, groups: list[Group]) -> None:
        """Replaces groups without signal, in their places, until none is left or their algorithm gives up."""
        while lacking := [i for i, group in enumerate(groups) if self.refills.lacks_signal(group)]:
            replacements = [self.refills.refill(groups[i]) for i in lacking]
            self._roll_out(replacements)
            for i, replacement in zip(lacking, replacements, strict=True):
                groups[i] = replacement

    def _roll_out(self, groups: list[Group]) -> None:
        """Samples and judges all rollouts of the groups, which belong to one step."""
        requests = [request for group in groups for request in self._requests(group)]
        asked = time.time()
        admission = self._wait_for_admission(groups[0])
        with self.life.ending_on_error():
            for rollout, verdict in self._sample(groups, requests, admission):
                set_verdict(rollout, verdict.result())
        judged = time.time()
        for group in groups:
            group.asked_at = asked
            group.judged_at = judged
        self.base.keep(groups)

    def _sample(
        self, groups: list[Group], requests: list[Request], admission: Admission
    ) -> list[tuple[Completion, Future[Verdict]]]:
        """Samples the rollouts by versions that the admission allows.

        Returns:
            Each rollout with its verdict to come: a rollout is given to the judge when it ends. None if the
            groups were known (`BaseEvaluation`).
        """
        dataset = groups[0].dataset
        judge = self.judges.of(dataset)
        judged = []
        loads = []
        needed, offered, generation = admission.needed, admission.offered, admission.generation
        with self.loaded.hold(needed, offered, generation, exact=dataset != "train") as held:
            started = time.time()
            is_known = self.base.recall(groups)
            for number, response in self._generations(groups[0], [] if is_known else requests):
                request = requests[number]
                group = request.group
                text = self._text(request, response)
                rollout = request.completion(response, text)
                group.completions.append(rollout)
                judged.append((rollout, judge.submit(Item(text, group.reference, group.metadata))))
                loads.append(response.loads)
        finished = time.time()
        for (rollout, _), own_loads in zip(judged, loads, strict=True):
            held.sign(rollout, own_loads)
        for group in groups:
            # They were added in the order in which they ended.
            group.completions.sort(key=lambda completion: completion.sample)
            group.engine = self.life.process.engine[:8]
            held.prove(group)
            group.started_at = started
            group.finished_at = finished
        return judged

    def _generations(self, group: Group, requests: list[Request]) -> Iterator[tuple[int, Generation]]:
        """As the engine's `stream`; the requests are those of groups like `group`."""
        if self.environment:
            turns = self.settings.rollout.max_turns
            return converse(self.engine, self.environment, requests, self._sampling(group), turns)
        return self.engine.stream(
            [request.prompt_ids for request in requests],
            [request.seed for request in requests],
            self._sampling(group),
            [len(request.prefix) for request in requests],
        )

    def _requests(self, group: Group) -> list[Request]:
        stage = self.reader.stage(group.step) if group.dataset == "train" else None
        return requests_of(group, self.settings.seed, stage)

    def _text(self, request: Request, generation: Generation) -> str:
        if not request.prefix:
            return generation.text
        return self.engine.text([*request.prefix, *generation.ids])

    def _sampling(self, group: Group) -> Sampling:
        is_training = group.dataset == "train"
        source = self.settings.rollout if is_training else self.settings.evaluation[group.dataset]
        stop = tuple(self.settings.rollout.stop)
        return Sampling(source.temperature, source.top_p, source.max_new_tokens, stop)

    def _wait_for_admission(self, group: Group) -> Admission:
        exact = group.dataset != "train"  # an evaluation is of one version
        timeout_s = self.settings.rollout.timeout_s
        about = self.generation, group.step, exact, timeout_s, self.together
        return wait_for_admission(self.coordinator, *about)

    def _load(self, offered: PolicyWeights) -> EngineWeights:
        """The version that the transport says it brought, with the fingerprint of what it gave to the
        engine."""
        version = self.transport.fetch(self._reload, offered)
        return self._engine_weights(version)

    def _engine_weights(self, version: int) -> EngineWeights:
        return EngineWeights(PolicyWeights(version, self._fingerprint), self.engine.loads, self._probe)

    def _reload(self, folder: Path) -> None:
        self.engine.load(folder)
        self._fingerprint = folder_fingerprint(folder)
        self._probe = self._score_probe()

    def _score_probe(self) -> tuple[float, ...]:
        """Without staleness all rollouts are scored by the learners, and there is nothing more to show."""
        return self.engine.score_probe() if self.settings.max_staleness else ()

    def _heartbeat(self) -> Heartbeat:
        process = self.life.process
        steps = self.engine.steps if self.engine else 0
        steps += self.environment.answered if self.environment else 0
        return Heartbeat(
            process.engine,
            process.node,
            process.pid,
            steps,
            self.loaded.in_flight + self.loaded.loading,
            self.life.finished,
            self.generation,
            Process.this().started,
        )
