"""Errors that the command line turns into one sentence and an exit code."""


class UserError(Exception):
    """Bad config or bad data: one clear sentence (what, where, what to do); the CLI exits with 2."""


class RunFailed(RuntimeError):
    """A run that ended without its last step; the message says why. The CLI exits with 1."""


def last_line(error: BaseException) -> str:
    """Of its message, which for a remote error is where the cause stands; its type if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
