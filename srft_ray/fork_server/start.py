"""The owner's side of the fork server."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from srft_ray.fork_server.client import BASE, listening

HERE = Path(__file__).resolve().parent


class ForkServer:
    """A process from which Ray's workers on this machine are forked.

    It imports while its owner goes on; workers that start before it has wait for it. It ends with its owner,
    however that ends. Workers do not end with it: those that come later start as they would without it.

    Attributes:
        folder: names it; it ends with the server.
    """

    def __init__(
        self,
        before_ray: Sequence[str],
        after_ray: Sequence[str],
        variables: Mapping[str, str],
        many_jobs: bool = False,
    ) -> None:
        """
        Args:
            before_ray: modules that are imported once; none of them may import ray.
            after_ray: modules that are imported with Ray, for each environment that workers have.
            variables: for the import of the former; what is set already stays.
            many_jobs: whether jobs of Ray follow each other, so that the next one is prepared for.
        """
        # For nobody else; and not in TMPDIR, because names of sockets have at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="srft-ray-forks-", dir="/tmp"))
        listener = listening(self.folder / BASE)
        jobs = "many" if many_jobs else "one"
        modules = [",".join(names) for names in (before_ray, after_ray)]
        given = [f"{name}={value}" for name, value in variables.items()]
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(listener.fileno()), jobs, *modules, *given],
            pass_fds=(listener.fileno(),),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the owner
        )
        listener.close()

    def close(self) -> None:
        """Ends the server; workers go on."""
        self._process.kill()  # it may be importing
        self._process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)
