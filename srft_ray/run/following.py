"""What the driver shows and tells of the runs of a series, while Ray Train trains one after another."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from srft_ray.data.tokenize import load_tokenizer, token_pieces
from srft_ray.observe.callbacks import Callback
from srft_ray.observe.follow import FollowerThread, RunFollower
from srft_ray.observe.page import write_page_quietly
from srft_ray.observe.progress import Progress
from srft_ray.observe.timeline import write_newest_trace
from srft_ray.run.result import result_of
from srft_ray.run.series import Run, events_of

POLL_INTERVAL_S = 0.5


class SeriesFollower(FollowerThread):
    """Follows the run that is trained, and writes what is left to write of those before it.

    Attributes:
        started: when each run began, in seconds since the epoch.
        number: of the run that is followed, or was at the end.
    """

    def __init__(
        self, runs: Sequence[Run], listeners: Sequence[Callback], stop: Callable[[str], None], started: float
    ) -> None:
        """`started`: when this command began. `stop` is called with a reason when a listener raises."""
        self.runs = runs
        self.started = [started] * len(runs)
        self.number = 0
        # All of them now: what a run writes from now on is new.
        self._progress = [
            Progress(run.run_dir, run.prepared.plan.steps, run.saved, warm=number > 0)
            for number, run in enumerate(runs)
        ]
        self._followers = [
            RunFollower(run.run_dir, [progress, *listeners], run.saved, stop)
            for run, progress in zip(runs, self._progress, strict=True)
        ]
        super().__init__("series-follower")

    def raise_failure(self) -> None:
        """Raises what a listener raised, if one did."""
        for follower in self._followers:
            follower.raise_failure()

    def write_pages(self) -> None:
        """Writes trace and page of the run that is followed."""
        run = self.runs[self.number]
        write_newest_trace(run.run_dir)
        write_page_quietly(
            run.run_dir, lambda: token_pieces(load_tokenizer(run.prepared.resolved.config.model))
        )

    def _follow(self) -> None:
        *_, last = self.runs
        events = events_of(self.runs)
        for number, run in enumerate(self.runs):
            self.number = number
            with self._progress[number], self._followers[number]:
                while not self._done.wait(POLL_INTERVAL_S):
                    # The storage of checkpoints, which may be far, is asked last.
                    if run is not last and number != events.present and run.is_done:
                        break
            if run is last or not run.is_done:
                return
            # If its summary cannot be written, the driver finds out when all runs have ended.
            with suppress(OSError):
                result_of(run.prepared, self.started[number])
            self.write_pages()
            self.started[number + 1] = time.time()
