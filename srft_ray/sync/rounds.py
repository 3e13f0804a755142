"""Who takes part when learners send a version to the engines' nodes themselves: one round for each version.

A round begins when every rank of the learners has entered it. On each node one listener, a thread of an
engine's actor, is invited, and its siblings if it does not get ready soon. Those that say in time that they
are ready are the members, one for each node, which are told to all and do not change any more. Whoever is
late, dead or not there yet takes the version from the object store.
"""

import time
import uuid
from collections.abc import Callable

from srft_ray.sync.changes import Changes
from srft_ray.sync.round_messages import Entry, Invitation, Notice, Round, Waiting
from srft_ray.sync.versions import fingerprint_of

READY_S = 5.0  # that the invited listeners have to get ready
SIBLINGS_S = 1.0  # after which the others of a node are invited too, because the first one may be dead
GRACE_S = 1.0  # between two calls of a listener, in which it counts as one that waits


class Rounds:
    """The newest round, and who waits for the next one. It may be lost: what it forgot comes by the object
    store."""

    def __init__(self, report: Callable[[str], None]) -> None:
        """`report` is given a sentence for each round that failed."""
        self._report = report
        self._changes = Changes()
        self._waiting: dict[str, tuple[Waiting, float]] = {}  # with the time until which it waits
        self._group = ""  # of the newest round with members
        self._members: tuple[str, ...] = ()
        self._wanted = ""  # fingerprint of the version that engines load
        self._reset((0, 0))

    def _reset(self, key: tuple[int, int]) -> None:
        """Begins the round of a (generation, version); none, if both are 0."""
        self._key = key
        self._entries: dict[int, Entry] = {}
        self._invitation: Invitation | None = None
        self._nodes: dict[str, list[str]] = {}  # the listeners of each, in the order in which they are asked
        self._invited: set[str] = set()
        self._ready: dict[str, tuple[str, str]] = {}  # each listener's group so far, and its folder
        self._round: Round | None = None
        self._given_up = False
        self._failed = False

    async def close(self) -> None:
        """The learners have left or start again: what they sent will not be loaded any more."""
        self._reset((0, 0))
        self._wanted = ""
        await self._changes.notify()

    def reached(self, version: int) -> int:
        """Nodes that received the version; 0 unless it is the newest one."""
        if self._round is None or self._round.version != version or self._failed:
            return 0
        return len(self._round.members)

    # Learners

    async def enter(self, generation: int, entry: Entry, wait_s: float) -> Round | None:
        """The round of a version, when its members are known; None if other ranks did not enter in time.

        It takes at most `wait_s`.
        """
        end = time.monotonic() + wait_s
        key = (generation, entry.version)
        if key != self._key:
            self._reset(key)
        self._entries[entry.rank] = entry
        if self._is_complete and not self._invitation:
            self._invite(time.monotonic())
        await self._changes.notify()
        await self._changes.wait_until(
            lambda: self._is_complete or self._given_up or self._key != key, wait_s
        )
        if self._key != key or not self._is_complete or self._given_up:
            # A rank that comes later must not wait for this one.
            self._given_up = self._given_up or self._key == key
            return None
        end = min(end, time.monotonic() + READY_S)
        await self._changes.wait_until(self._is_decided, min(SIBLINGS_S, end - time.monotonic()))
        self._invited.update(*self._late_nodes())
        await self._changes.notify()
        await self._changes.wait_until(self._is_decided, end - time.monotonic())
        return await self._freeze() if self._key == key else None

    def _is_decided(self) -> bool:
        return self._round is not None or not self._late_nodes()

    def _late_nodes(self) -> list[list[str]]:
        """The listeners of the nodes of which none is ready."""
        return [listeners for listeners in self._nodes.values() if not self._ready.keys() & set(listeners)]

    async def failed(self, name: str, problem: str) -> None:
        """A listener or a learner could not take part to the end."""
        if self._invitation and self._invitation.round == name and not self._failed:
            self._failed = True
            self._tell(problem)

    def _tell(self, problem: str) -> None:
        self._report(
            f"policy version {self._key[1]} did not reach all nodes by the collective transport ({problem}); "
            "those that lack it load it from the object store"
        )

    @property
    def _is_complete(self) -> bool:
        """Whether all ranks have entered."""
        return any(len(self._entries) == entry.ranks for entry in self._entries.values())

    def _invite(self, now: float) -> None:
        """One listener of each node; that of the round before if it waits, because it is in the group."""
        self._waiting = {one.listener: (one, until) for one, until in self._waiting.values() if now <= until}
        waiting = [one for one, _ in self._waiting.values()]
        waiting.sort(key=lambda one: (one.listener not in self._members, one.listener))
        for one in waiting:
            self._nodes.setdefault(one.node, []).append(one.listener)
        self._invited = {listeners[0] for listeners in self._nodes.values()}
        headers = next((entry.headers for entry in self._entries.values() if entry.headers), {})
        hashes = sum(entry.hashes for entry in self._entries.values())
        self._wanted = fingerprint_of(hashes)
        self._invitation = Invitation(uuid.uuid4().hex, self._wanted, headers)

    async def _freeze(self) -> Round:
        """The members are those that are ready now."""
        if self._round is None:
            ready = [[one for one in listeners if one in self._ready] for listeners in self._nodes.values()]
            members = tuple(sorted(first for first, *_ in filter(None, ready)))
            groups = {entry.group for entry in self._entries.values()} | {
                self._ready[one][0] for one in members
            }
            if members != self._members or groups != {self._group}:
                self._group, self._members = uuid.uuid4().hex, members
            entries = [self._entries[rank] for rank in sorted(self._entries)]
            nodes = {one: node for node, listeners in self._nodes.items() for one in listeners}
            self._round = Round(
                self._invitation.round,
                self._key[1],
                self._group,
                members,
                tuple(nodes[one] for one in members),
                tuple(self._ready[one][1] for one in members),
                tuple(entry.address for entry in entries),
                tuple(entry.node for entry in entries),
                tuple(entry.staged for entry in entries),
            )
            if late := self._late_nodes():
                self._tell(f"{len(late)} nodes were not ready within {READY_S:.0f} s")
            await self._changes.notify()
        return self._round

    # Listeners

    async def next(self, waiting: Waiting, wait_s: float) -> Notice:
        """Waits for an invitation, or until what the listener holds is not needed any more."""
        self._waiting[waiting.listener] = waiting, time.monotonic() + wait_s + GRACE_S
        await self._changes.wait_until(
            lambda: self._is_invited(waiting) or self._is_released(waiting), wait_s
        )
        if self._is_invited(waiting):
            self._waiting.pop(waiting.listener, None)
            return Notice(self._invitation, released=True)
        return Notice(released=self._is_released(waiting))

    async def join(self, name: str, listener: str, group: str, folder: str) -> Round | None:
        """A listener is ready, and is in the groups of that name already; None if it is too late.

        Learners of its node write into the folder.
        """
        if self._invitation is None or self._invitation.round != name:
            return None
        if self._round is None:
            self._ready[listener] = group, folder
            await self._changes.notify()
        joined = self._key
        await self._changes.wait_until(lambda: self._round is not None or self._key != joined, READY_S)
        made = self._round if self._key == joined else None
        return made if made and listener in made.members else None

    def _is_invited(self, waiting: Waiting) -> bool:
        can_join = waiting.listener in self._invited and self._round is None
        return can_join and waiting.listener not in self._ready

    def _is_released(self, waiting: Waiting) -> bool:
        return waiting.holds not in ("", self._wanted)
