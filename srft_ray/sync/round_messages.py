"""What learners, listeners and the coordinator tell each other about a round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Entry:
    """What a rank of the learners tells before it sends its share of a version.

    Attributes:
        hashes: the sum of the hashes of those tensors that fell to this rank (`sync.fingerprint`).
        address: host and port of the store through which this rank's group is made.
        node: of its shared memory (`sync.node_copy.memory_id`).
        group: name of the groups that it is in since the round before; empty if it is in none.
        headers: of the version's files, of the rank that has them (`sync.pieces`).
        staged: folder on its node into which it has written its share already; empty if there is none.
    """

    version: int
    rank: int
    ranks: int
    hashes: int
    address: tuple[str, int]
    node: str
    group: str = ""
    headers: Mapping[str, bytes] = field(default_factory=dict)
    staged: str = ""


@dataclass(frozen=True)
class Waiting:
    """A listener that waits for a round.

    Attributes:
        listener: names it, and no other one of any start.
        node: of its shared memory; listeners of one node need only one copy.
        holds: fingerprint of the copy that it received and keeps for the engines of its node.
    """

    listener: str
    node: str
    holds: str = ""


@dataclass(frozen=True)
class Invitation:
    """To a listener, which is to get ready for the round."""

    round: str
    fingerprint: str
    headers: Mapping[str, bytes]


@dataclass(frozen=True)
class Notice:
    """What a listener is told: an invitation, or that nobody will load any more what it holds."""

    invitation: Invitation | None = None
    released: bool = False


@dataclass(frozen=True)
class Round:
    """The members of a round. Each rank of the learners has a group of its own with those of other nodes.

    Attributes:
        group: names the groups; groups of this name that were made in an earlier round are used again.
        members: the listeners.
        nodes: of their shared memory.
        folders: where the copies of their nodes are written.
        addresses: of the stores of the learners, by rank.
        homes: of the learners' shared memory, by rank.
        staged: the learners' folders of that name (`Entry`), by rank.
    """

    name: str
    version: int
    group: str
    members: tuple[str, ...]
    nodes: tuple[str, ...]
    folders: tuple[str, ...]
    addresses: tuple[tuple[str, int], ...]
    homes: tuple[str, ...]
    staged: tuple[str, ...]

    def receivers(self, rank: int) -> list[str]:
        """The members in the group of that learner, which is rank 0 there. To a member of its own node it
        sends nothing: it writes into the copy of the node."""
        home = self.homes[rank]
        return [member for member, node in zip(self.members, self.nodes, strict=True) if node != home]

    def folder(self, rank: int) -> str:
        """Where that learner writes for the member of its own node; empty if there is none, or if that one
        takes what is staged."""
        home = self.homes[rank]
        return "" if self.staged_at(home) else dict(zip(self.nodes, self.folders, strict=True)).get(home, "")

    def staged_at(self, node: str) -> str:
        """The folder into which all learners of that node have written; empty if there is none."""
        folders = {folder for folder, home in zip(self.staged, self.homes, strict=True) if home == node}
        return folders.pop() if len(folders) == 1 else ""


class RoundKeys(NamedTuple):
    """Of what a learner tells the listeners through its store.

    Attributes:
        plan: the places of the pieces that it sends.
        written: the learner has written or sent all.
    """

    plan: str
    written: str

    @classmethod
    def of(cls, round: str) -> "RoundKeys":
        return cls(f"{round}/plan", f"{round}/written")
