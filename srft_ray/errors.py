"""Errors that the command line turns into one sentence and an exit code, and what their sentences are made
of."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad config or bad data: one clear sentence (what, where, what to do). The command line exits with 2."""


class RunFailed(RuntimeError):
    """A run that ended without its last step; the message says why. The command line exits with 1."""


def require(condition: bool, sentence: str) -> None:
    """Raises UserError with the sentence unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def nearest(word: object, choices: Iterable[object]) -> str:
    """The choice that is spelled most like `word` as "did you mean 'X'?", or the list of all choices."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(names)}."


def first_line(error: BaseException) -> str:
    """The first line of the error's message, without its full stop, for use inside a sentence."""
    return " ".join(str(error).split("\n")[0].split()).rstrip(".")


def last_line(error: BaseException) -> str:
    """The last line of the error's message, where a remote error names its cause; the error's type if it has
    no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def cause(error: BaseException) -> str:
    """The innermost error of a chain, or the last line of a remote traceback, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return last_line(error)
