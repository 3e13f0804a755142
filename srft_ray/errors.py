"""Errors that the command line turns into one sentence and an exit code."""


class UserError(Exception):
    """Bad config or bad data: one clear sentence (what, where, what to do); the CLI exits with 2."""


class RunFailed(RuntimeError):
    """A run that ended without its last step; the message says why. The CLI exits with 1."""
