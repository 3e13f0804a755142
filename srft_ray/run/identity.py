"""Who a run is: its id, and fingerprints of the files that its updates depend on.

They are recorded in `identity.json` when the run starts, and compared when it is continued. The folder of its
checkpoints names its owner, so that two runs never load or delete each other's.
"""

import json
import time
import uuid
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from srft_ray.config.resolve import Resolved
from srft_ray.errors import UserError, require
from srft_ray.observe.journal import write_whole
from srft_ray.train.checkpoint import CheckpointStore

RECORD = "identity.json"
OWNER = "owner.json"
PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Identity:
    """Attributes:
    id: unique to the run, whatever its name.
    created: seconds since the epoch.
    fingerprints: by what they are of, such as `data.path`; a run of an earlier release has none.
    """

    id: str
    created: float
    fingerprints: dict[str, str] = field(default_factory=dict)


def new_identity(fingerprints: dict[str, str]) -> Identity:
    return Identity(uuid.uuid4().hex, round(time.time(), 3), fingerprints)


def read_identity(run_dir: Path) -> Identity | None:
    """None if no run was started in the directory, or one of an earlier release.

    Raises:
        UserError: the record cannot be read.
    """
    path = run_dir / RECORD
    if not path.exists():
        return None
    try:
        return Identity(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} cannot be read as the record of a run: restore it, or choose another run.name."
        ) from None


def write_identity(run_dir: Path, identity: Identity) -> None:
    write_whole(run_dir / RECORD, json.dumps(asdict(identity), indent=2) + "\n")


def check_fingerprints(run_dir: Path, now: dict[str, str]) -> None:
    """Raises UserError if a file that the updates of the run depend on has changed since it started."""
    identity = read_identity(run_dir)
    if identity is None:
        return
    changed = [name for name, value in identity.fingerprints.items() if now.get(name, value) != value]
    require(
        not changed,
        f"The run in {run_dir} was started with other content of {', '.join(changed)}: restore it, or "
        "choose another run.name.",
    )


def read_owner(store: CheckpointStore) -> dict[str, str] | None:
    """The run that the folder of checkpoints belongs to: `run_id` and `run_dir`; None if it names none."""
    try:
        with store.files.open_input_file(f"{store.root}/{OWNER}") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None


def write_owner(store: CheckpointStore, identity: Identity) -> None:
    """Makes the folder of checkpoints the run's own, so that no other run loads or deletes what is in it."""
    store.files.create_dir(store.root, recursive=True)
    with store.files.open_output_stream(f"{store.root}/{OWNER}") as file:
        file.write(json.dumps({"run_id": identity.id, "run_dir": str(store.run_dir)}).encode())


def check_owner(store: CheckpointStore, identity: Identity | None) -> None:
    """Raises UserError if the folder of checkpoints belongs to another run."""
    owner = read_owner(store)
    if owner is None or (identity and owner["run_id"] == identity.id):
        return
    raise UserError(
        f"{store.scheme}{store.root} holds checkpoints of another run, that in {owner['run_dir']}: choose "
        "another run.name or trainer.checkpoint_path."
    )


def fingerprints(resolved: Resolved, train_file: str, dtype: str) -> dict[str, str]:
    """Of everything outside the config that decides the updates.

    Args:
        train_file: the prepared training data.
        dtype: the number format, which `model.dtype=auto` takes from the device.
    """
    config = resolved.config
    found = {"data.path": file_fingerprint(Path(train_file)), "model.dtype (auto)": dtype}
    plugins = {
        "verifier.path": config.verifier.path,
        "algorithm.path": config.algorithm.get("path"),
        "rollout.environment": config.rollout.environment,
    }
    for key, named in plugins.items():
        if named:
            found[key] = file_fingerprint(Path(str(named).rpartition(":")[0]))
    models = {"model.path": config.model.path, "learner.reference": config.learner.reference}
    for key, path in models.items():
        if path and Path(path).is_dir():
            found[key] = model_files_fingerprint(Path(path))
    return found


def file_fingerprint(path: Path) -> str:
    """CRC-32 of the content, and its size in bytes."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(16 * PIECE_BYTES):
            checksum = zlib.crc32(piece, checksum)
    return f"{checksum:08x}-{path.stat().st_size}"


def model_files_fingerprint(folder: Path) -> str:
    """Of a model's weights and configuration: names, sizes, and the first and last MiB of each file.

    A model of 70B parameters is not read as a whole for it.
    """
    checksum = 0
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    for path in files:
        size = path.stat().st_size
        checksum = zlib.crc32(f"{path.name} {size}".encode(), checksum)
        with path.open("rb") as file:
            checksum = zlib.crc32(file.read(PIECE_BYTES), checksum)
            file.seek(max(0, size - PIECE_BYTES))
            checksum = zlib.crc32(file.read(PIECE_BYTES), checksum)
    return f"{checksum:08x}-{len(files)}"
