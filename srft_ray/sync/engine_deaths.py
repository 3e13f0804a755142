"""Deaths of engines: which are bad luck, and which would repeat for ever."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

DEATHS_AT_A_POINT = 2  # of a known cause, after which a further start would only repeat it
UNEXPLAINED_DEATHS = 3  # in a row; a process that is killed from outside may have had bad luck twice
NO_TRACE = "killed without a trace, as by SIGKILL or for lack of memory"


@dataclass(frozen=True)
class EngineProcess:
    """A process of an engine.

    Attributes:
        engine: id of its actor, which a restart of the actor keeps.
        node, pid: where the process runs.
        log: path of its standard error on the node; empty if that is no file.
    """

    engine: str
    node: str
    pid: int
    log: str


@dataclass(frozen=True)
class EngineDeath:
    """How a process of an engine ended.

    Attributes:
        cause: its exception or signal in one line; empty if it left none.
        log: the last lines of its log, in one line.
        finished: groups that it had finished.
    """

    process: EngineProcess
    cause: str
    log: str
    finished: int


class EngineDeaths:
    """Tells deaths that repeat at the same point from bad luck. Times are monotonic seconds.

    Deaths are at the same point if an engine finished no group in between, or if a process that started after
    a death dies of the same cause before the learners have published a new version.

    Attributes:
        problem: why no engine is to be started any more; empty while there is no reason.
    """

    def __init__(self, report: Callable[[str, str], None]) -> None:
        """`report` is told (kind, message) of every death."""
        self.problem = ""
        self._report = report
        self._processes: dict[str, EngineProcess] = {}  # of each engine, while it is not known to have died
        self._started_at: dict[EngineProcess, float] = {}
        self._finished: Counter[str] = Counter()  # groups of the present process of each engine
        self._fruitless: Counter[str] = Counter()  # deaths of each engine since it last finished a group
        self._first_death_at: dict[str, float] = {}  # of each cause since the last publication

    def started(self, process: EngineProcess, now: float) -> EngineProcess | None:
        """Takes note of a start; gives the engine's process before it if nobody has told of its death."""
        before = self._processes.get(process.engine)
        self._processes[process.engine] = process
        self._started_at[process] = now
        return before

    def finished(self, engine: str, groups: int) -> None:
        """The engine's present process has finished so many groups."""
        self._finished[engine] = groups

    def published(self) -> None:
        """The learners have a new version: what engines died of before did not keep the run from going on."""
        self._first_death_at.clear()

    def died(self, death: EngineDeath, now: float) -> None:
        """Takes note of a death, and decides whether it is to be the last one."""
        engine = death.process.engine
        cause = death.cause or NO_TRACE
        self._report("engine", f"engine {engine[:8]} died: {cause}")
        if self._processes.get(engine) == death.process:
            del self._processes[engine]
        finished = max(death.finished, self._finished.pop(engine, 0))
        self._fruitless[engine] = 1 if finished else self._fruitless[engine] + 1
        limit = DEATHS_AT_A_POINT if death.cause else UNEXPLAINED_DEATHS
        started_at = self._started_at.pop(death.process, now)
        if self._fruitless[engine] >= limit or self._repeats(death.cause, started_at, now):
            self.problem = _sentence(cause, death.log)

    def _repeats(self, cause: str, started_at: float, now: float) -> bool:
        if not cause:
            return False
        # Sizes and addresses differ between two messages of one cause.
        kind = re.sub(r"\d+", "N", cause)
        first_at = self._first_death_at.setdefault(kind, now)
        # Engines that die together share one piece of bad luck.
        return started_at > first_at


def _sentence(cause: str, log: str) -> str:
    lines = f" The last lines of its log: {log}" if log else ""
    return f"An engine died repeatedly at the same point ({cause}), and would die again.{lines}"
