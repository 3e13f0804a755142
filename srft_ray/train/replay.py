"""Correct rollouts of earlier steps, which are trained on again."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from algorithms import CORRECT_ABOVE, Algorithm, Completion, Group
from srft_ray.observe.ledger import encodable
from srft_ray.train.checkpoint import CheckpointStore

FILE = "replay.parquet"  # of a checkpoint
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("step", pa.int64()),
        ("ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("observed", pa.list_(pa.list_(pa.int32()))),
        ("text", pa.string()),
        ("policy_version", pa.int64()),
        ("seed", pa.int64()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("verdict", pa.string()),
        ("answer", pa.string()),
    ]
)
Key = tuple[int, int]  # row of the prompt, and step of the visit
Record = dict[str, Any]  # by the names of SCHEMA


class ReplayPool:
    """The likeliest correct rollout of each visit in the newest `age` steps; every rank holds all of them.

    They are a pure function of the ledger: of the rollouts of a prompt in a step that are correct and
    continue no demonstration, the one with the highest mean log-prob by the policy that sampled it, whose
    negative estimates the entropy along the sequence.
    """

    def __init__(self, age: int) -> None:
        """`age`: the largest `replay_age` of the run's algorithms; 0: nothing is kept."""
        self.age = age
        self._records: dict[Key, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def add(self, step: int, groups: Sequence[Group]) -> None:
        """Takes up rollouts of a step, and drops those that are too old for the next; a collective."""
        if not self.age:
            return
        shares: list[list[tuple[int, Record]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, _found(groups))
        every = [found for share in shares for found in share]
        # The order does not depend on which rank had which group.
        for _, record in sorted(every, key=lambda found: found[0]):
            key = _key(record)
            known = self._records.get(key)
            if known is None or _likelihood(record) > _likelihood(known):
                self._records[key] = record
        oldest = step + 1 - self.age
        self._records = {key: record for key, record in self._records.items() if key[1] >= oldest}

    def attach(self, algorithm: Algorithm, groups: Sequence[Group]) -> None:
        """Adds a rollout of an earlier visit to each group that replays, and assigns its credit anew.

        Raises:
            RuntimeError: the rollout is not here.
        """
        for group in groups:
            if group.replays:
                record = self._choose(group, group.step - algorithm.replay_age)
                sample = 1 + max((completion.sample for completion in group.completions), default=-1)
                group.completions.append(_completion(record, sample))
                algorithm.assign_credit(group)

    def _choose(self, group: Group, oldest: int) -> Record:
        """The likeliest of the rollouts of the group's visits from step `oldest` on."""
        keys = [(group.row, visit.step) for visit in group.visits if visit.step >= oldest and visit.correct]
        records = [self._records[key] for key in keys if key in self._records]
        if not records:
            raise RuntimeError(
                f"Step {group.step}: group {group.group_id} replays a rollout of row {group.row}, but none "
                f"of its visits since step {oldest} is kept."
            )
        return max(records, key=_likelihood)

    def metrics(self, groups: Sequence[Group], device: torch.device) -> dict[str, float]:
        """Of a step: how many rollouts are kept and replayed, and how old these are; a collective."""
        if not self.age:
            return {}
        ages = [group.step - one.policy_version for group in groups for one in _replays(group)]
        sums = torch.tensor([len(ages), sum(ages)], dtype=torch.float64, device=device)
        oldest = torch.tensor(max(ages, default=0), device=device)
        dist.all_reduce(sums)
        dist.all_reduce(oldest, dist.ReduceOp.MAX)
        return {
            "replay/kept": float(len(self)),
            "replay/sequences": float(sums[0]),
            "replay/staleness_mean": float(sums[1] / sums[0].clamp(min=1)),
            "replay/staleness_max": float(oldest),
        }

    def content(self) -> Mapping[str, bytes]:
        """What this rank writes into a checkpoint: the file and its bytes, if any rollout is kept."""
        if dist.get_rank() or not self._records:
            return {}
        file = io.BytesIO()
        records = [record for _, record in sorted(self._records.items())]
        pq.write_table(pa.Table.from_pylist(records, SCHEMA), file)
        return {FILE: file.getvalue()}

    def load(self, store: CheckpointStore, step: int) -> None:
        """Takes up the rollouts that were kept at the checkpoint of `step`."""
        self._records = {}
        if self.age and FILE in store.manifest(step)["files"]:
            with store.files.open_input_file(store.path(step, FILE)) as file:
                records = pq.read_table(io.BytesIO(file.read())).to_pylist()
            self._records = {_key(record): record for record in records}


def _replays(group: Group) -> list[Completion]:
    return [completion for completion in group.completions if completion.origin == "replay"]


def _found(groups: Sequence[Group]) -> list[tuple[int, Record]]:
    """(group_id, record) of the likeliest correct rollout of each group that has one."""
    found = []
    for group in groups:
        records = [_record(group, rollout) for rollout in group.rollouts if _may_return(rollout)]
        if records:
            found.append((group.group_id, max(records, key=_likelihood)))
    return found


def _may_return(rollout: Completion) -> bool:
    """Whether it counts as correct in the visit of its group."""
    return rollout.trained and not rollout.prefix and rollout.reward > CORRECT_ABOVE


def _record(group: Group, rollout: Completion) -> Record:
    """As the ledger has it, so that a restart changes nothing."""
    kept = {name: getattr(rollout, name) for name in SCHEMA.names if name not in ("row", "step")}
    return {
        **kept,
        "row": group.row,
        "step": group.step,
        "ids": list(rollout.ids),
        "logprobs": np.asarray(rollout.logprobs, dtype=np.float32).tolist(),
        "observed": [list(span) for span in rollout.observed],
        "text": encodable(rollout.text),
        "answer": encodable(rollout.answer),
    }


def _completion(record: Record, sample: int) -> Completion:
    kept = {name: value for name, value in record.items() if name not in ("row", "step")}
    return Completion(sample=sample, origin="replay", **kept)


def _key(record: Record) -> Key:
    return record["row"], record["step"]


def _likelihood(record: Record) -> float:
    """Mean log-prob of the tokens that the policy sampled, in nats."""
    observed = sum(end - first for first, end in record["observed"])
    return float(np.sum(record["logprobs"])) / (len(record["ids"]) - observed)
