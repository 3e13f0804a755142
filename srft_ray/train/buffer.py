"""Groups that an algorithm keeps back until there are enough of them for an update of their own."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch.distributed as dist

from algorithms import Algorithm, Completion, Group
from srft_ray.train.checkpoint import CheckpointStore

FILE = "buffer.json"  # of a checkpoint
METRICS = ("loss", "grad_norm", "tokens")  # of its update that are recorded
KEPT_OF_GROUP = ("step", "group_id", "prompt", "prompt_ids", "reference", "max_new_tokens", "row", "attempt")
KEPT_OF_COMPLETION = ("sample", "origin", "text", "ids", "reward")


class GroupBuffer:
    """The groups that wait, with their demonstrations alone; every rank holds all of them.

    Attributes:
        used: this rank's share of the groups that the newest step trained on from the buffer.
    """

    def __init__(self) -> None:
        self.waiting: list[Group] = []
        self.used: list[Group] = []

    def collect(self, algorithm: Algorithm, groups: Sequence[Group], step: int) -> bool:
        """Buffers groups of a step, and takes the oldest for an update if there are enough.

        A collective; all ranks get the same answer. An algorithm without a buffer has no update.
        """
        if not algorithm.buffer_size:
            return False
        self._add(algorithm, groups)
        return self._take(algorithm.buffer_size, step)

    def metrics(
        self, algorithm: Algorithm, of_update: Mapping[str, float] = MappingProxyType({})
    ) -> dict[str, float]:
        """Of a step, with those of the update on buffered groups if there was one."""
        if not algorithm.buffer_size:
            return {}
        found = {f"buffer/{name}": of_update[name] for name in METRICS if name in of_update}
        return {"buffer/groups": float(len(self.waiting)), **found}

    def _add(self, algorithm: Algorithm, groups: Sequence[Group]) -> None:
        own = [_kept(group) for group in groups if algorithm.buffers(group)]
        shares: list[list[Group]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, own)
        found = [group for share in shares for group in share]
        # The order does not depend on which rank had which group.
        self.waiting += sorted(found, key=lambda group: group.group_id)

    def _take(self, size: int, step: int) -> bool:
        if len(self.waiting) < size:
            return False
        taken = [dataclasses.replace(group, step=step) for group in self.waiting[:size]]
        self.waiting = self.waiting[size:]
        self.used = taken[dist.get_rank() :: dist.get_world_size()]
        return True

    def content(self) -> dict[str, bytes]:
        """What this rank writes into a checkpoint: the file and its bytes, if any group waits."""
        if dist.get_rank() or not self.waiting:
            return {}
        return {FILE: json.dumps([_as_record(group) for group in self.waiting]).encode()}

    def load(self, store: CheckpointStore, step: int) -> None:
        """Takes up the groups that waited at the checkpoint of `step`."""
        self.waiting = []
        if FILE in store.manifest(step)["files"]:
            with store.files.open_input_file(store.path(step, FILE)) as file:
                self.waiting = [_of_record(record) for record in json.loads(file.read())]


def _kept(group: Group) -> Group:
    """The group as it is trained on later; a record and back, so that a restart changes nothing."""
    return _of_record(_as_record(group))


def _as_record(group: Group) -> dict[str, Any]:
    demonstrations = [
        {name: _plain(getattr(one, name)) for name in KEPT_OF_COMPLETION} for one in group.demonstrations
    ]
    return {
        **{name: _plain(getattr(group, name)) for name in KEPT_OF_GROUP},
        "demonstrations": demonstrations,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else list(value)


def _of_record(record: dict[str, Any]) -> Group:
    fields = {name: record[name] for name in KEPT_OF_GROUP}
    return Group(**fields, completions=[Completion(**one) for one in record["demonstrations"]])
