"""Processes that vLLM starts for an engine: they end with the actor that the engine belongs to."""

import os
import select
import signal
import threading


class EndWithActor:
    """Mixed into vLLM's workers (`worker_extension_cls`), where the engine can call it by name.

    vLLM's core ends when the process that started it tells it to. One that is killed cannot, and its core
    would hold the GPU for ever.
    """

    def end_with_actor(self, actor_pid: int) -> None:
        """When the actor has died, SIGKILL ends this process, and vLLM's core if that is its parent."""
        if os.getpid() == actor_pid:
            return
        # A descriptor of the process, because its number may be given to another one.
        actor = os.pidfd_open(actor_pid)
        parent = os.getppid()
        victims = [os.getpid()] if parent == actor_pid else [parent, os.getpid()]
        threading.Thread(
            target=_kill_after, args=(actor, victims), name="end-with-actor", daemon=True
        ).start()


def _kill_after(actor: int, pids: list[int]) -> None:
    """Waits for the end of the process behind the descriptor `actor`, then kills the processes in turn."""
    select.select([actor], [], [])
    for pid in pids:
        # A parent that has died too has left this process to another one, which must not be killed.
        if pid in (os.getpid(), os.getppid()):
            os.kill(pid, signal.SIGKILL)
