"""The groups that wait in the coordinator until they may start."""

from srft_ray.sync.changes import Changes
from srft_ray.sync.versions import PublishedVersions

# Ray runs at most `max_concurrency` calls of an asynchronous actor at a time, 1,000 unless it is told another
# number. Waiting admissions may take only a part of them, and each only for a limited time, so that
# publications, heartbeats and other admissions always get through. A group that may not wait here asks again
# and again, so that with many engines many must be allowed to wait.
MAX_WAITING = 500  # unless the actor is told another number
ADMISSION_WAIT_S = 30.0


class AdmissionQueue:
    """At most so many groups wait at a time; a further one asks again and again."""

    def __init__(self, versions: PublishedVersions, changes: Changes, most: int) -> None:
        self._versions = versions
        self._changes = changes  # of the published version
        self._most = most
        self._waiting = 0

    async def wait(self, generation: int, step: int, exact: bool, wait_s: float) -> tuple[bool, bool]:
        """(whether the group may start, whether it did not wait because too many did)."""

        def admits() -> bool:
            return self._versions.admits(generation, step, exact)

        busy = self._waiting >= self._most
        if not busy and not admits():
            self._waiting += 1
            try:
                await self._changes.wait_until(admits, min(wait_s, ADMISSION_WAIT_S))
            finally:
                self._waiting -= 1
        return admits(), busy
