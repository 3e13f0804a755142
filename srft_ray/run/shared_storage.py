"""Whether all nodes of the cluster see the files of a run."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from srft_ray.config.evaluation import evaluation_sets
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, require

ANSWER_TIMEOUT_S = 120.0  # for a node to say which paths it sees
WRITTEN_KEYS = ("run.dir", "trainer.checkpoint_path")


def shared_paths(config: Config) -> dict[str, str]:
    """Absolute paths that learners and engines read or write, by config key; the id of a model on a hub is
    none."""
    plugins = {
        "verifier.path": config.verifier.path,
        "rollout.transport": config.rollout.transport,
        "rollout.environment": config.rollout.environment,
        "algorithm.path": config.algorithm.get("path"),
    }
    for name, section in evaluation_sets(config).items():
        plugins[f"evaluation.data.{name}.verifier"] = section.verifier
    found = {
        "run.dir": config.run.dir,
        "trainer.checkpoint_path": (config.trainer.checkpoint_path or "").removeprefix("file://"),
        "model.path": config.model.path,
        "learner.reference": config.learner.reference or "",
        "learner.critic": config.learner.critic or "",
        **{key: str(value).rpartition(":")[0] for key, value in plugins.items()},
    }
    return {key: path for key, path in found.items() if Path(path).is_absolute()}


def check_shared(paths: Mapping[str, str]) -> None:
    """Raises UserError if a node that can hold learners or engines does not see one of the paths.

    `paths` are absolute, by config key. Where the run writes, a node must see a file that this process makes
    there: a job's working directory is no shared storage, since every node unpacks what was submitted for
    itself, under one name, so that it has the files but sees nothing that another node writes.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2:
        return
    with ExitStack() as stack:
        probes = dict(paths)
        for key in WRITTEN_KEYS:
            if key in paths:
                probes[key] = stack.enter_context(_marker(paths[key])).name
        # All nodes are asked before the first answer is awaited.
        answers = [(node, _unseen_on(node["NodeID"], list(probes.values()))) for node in nodes]
        for node, answer in answers:
            unseen = _answer_of(node["NodeManagerAddress"], answer)
            for key, path in paths.items():
                require(
                    probes[key] not in unseen,
                    f"Node {node['NodeManagerAddress']} of the Ray cluster does not see {key}={path} of "
                    "this node: put it on storage that all nodes see at the same path.",
                )


def _answer_of(address: str, answer: ray.ObjectRef) -> list[str]:
    """The paths that the node does not see; none if it has left the cluster."""
    try:
        return ray.get(answer, timeout=ANSWER_TIMEOUT_S)
    except GetTimeoutError:
        raise UserError(
            f"Node {address} of the Ray cluster did not say within {ANSWER_TIMEOUT_S:.0f} s what it sees: "
            "end what keeps it busy, or take it out."
        ) from None
    except (TaskUnschedulableError, WorkerCrashedError, NodeDiedError):
        return []


def _marker(folder: str) -> IO[bytes]:
    """A file in the folder that is removed when it is closed."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return NamedTemporaryFile(dir=folder, prefix=".seen-by-all-")


def _unseen_on(node_id: str, paths: list[str]) -> ray.ObjectRef:
    """The paths that do not exist on a node."""

    def unseen() -> list[str]:  # nested, so that a node without srft_ray's dependencies can answer too
        return [path for path in paths if not os.path.exists(path)]

    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(unseen).options(scheduling_strategy=here).remote()
