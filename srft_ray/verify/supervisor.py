"""The process beside a `VerifierPool`: it forks the workers, hands out items, times each, replaces workers.

Only the workers look at a response; the supervisor passes bytes on, so that nothing in a response can hang or
crash it. It has one thread, so that forking is safe, and few imports: multiprocessing's fork server would
have every new worker import the owner's `__main__`, which in a Ray actor is Ray itself.
"""

import dataclasses
import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from srft_ray.errors import UserError
from srft_ray.verify import sandbox
from srft_ray.verify.directories import make_pool_directory, remove_pool_directories
from srft_ray.verify.owner import Owner
from srft_ray.verify.replies import ACCEPTED, REFUSED
from srft_ray.verify.request import Request
from srft_ray.verify.settings import Settings, load_verifier
from srft_ray.verify.worker_set import WorkerSet


def supervise(conn: Connection) -> None:
    """Serve the owner at the other end of `conn` until it is gone (EOFError)."""
    owner = Owner(conn)
    # First of all, so that nothing that a verifier starts, on import too, can get away.
    sandbox.adopt_orphans()
    settings: Settings = conn.recv()
    namespaces = enter_namespaces(settings)
    try:
        directory = make_pool_directory(settings.token, namespaces)
        os.environ.update({"HOME": directory, "TMPDIR": directory})
        verify_in(dataclasses.replace(settings, directory=directory), owner, namespaces)
    finally:
        remove_pool_directories(settings.token)


def verify_in(settings: Settings, owner: Owner, namespaces: bool) -> None:
    """Load the verifier and serve the owner, with all files in the settings' directory."""
    try:
        verifier = load_verifier(settings)
    except UserError as error:
        return refuse(owner, str(error))
    # Before the workers are forked, so that a worker's first item takes no longer than the next.
    if settings.is_built_in():
        getattr(sys.modules[verifier.__module__], "warm_up", lambda: None)()
    workers = WorkerSet(owner, verifier, settings, namespaces)
    try:
        workers.start()
        serve(owner, workers)
    finally:
        workers.close()


def serve(owner: Owner, workers: WorkerSet) -> None:
    """Answer the owner's requests until it is gone (EOFError)."""
    while True:
        questions = owner.next_request()
        # From here on, a death of this process is the fault of an item in hand.
        owner.send(ACCEPTED)
        Request(workers, questions).run()


def enter_namespaces(settings: Settings) -> bool:
    """Whether this process is in namespaces now. Says why not, where they were wanted."""
    if not settings.namespaces:
        return False
    refusal = sandbox.enter_namespaces(settings.network)
    if refusal and not settings.restarted:
        print(
            f"srft_ray: this kernel refuses namespaces to this user ({refusal}): verifiers can use the "
            f"network, write files wherever this user can, and signal this user's processes.",
            file=sys.stderr,
            flush=True,
        )
    return not refusal


def refuse(owner: Owner, sentence: str) -> None:
    """Answer the owner's first request with the sentence of a UserError, and end."""
    owner.next_request()
    owner.send(REFUSED + sentence.encode("utf-8", "replace"))


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        supervise(Connection(int(sys.argv[1])))
