"""A verifier: what goes in, what comes out, and how it is named or given."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from srft_ray.errors import UserError
from srft_ray.plugins import load_object

Verify = Callable[[str, str, dict], Any]

MAX_REWARD = 3.4e38  # finite in float32, in which advantages are computed
VERDICTS = ("match", "mismatch", "no_answer", "timeout", "error")
BUILT_IN = {
    "math": "srft_ray.verify.math_verifier",
    "either": "srft_ray.verify.either_verifier",
    "code": "srft_ray.verify.code_verifier",
    "tasks": "srft_ray.verify.task_verifier",
}
ENVIRONMENT = "environment"


@dataclass(frozen=True)
class Verdict:
    """The verifier's decision on one response."""

    verdict: str  # one of VERDICTS; the ledger's "given" is reserved for demonstrations
    reward: float  # 1.0 or 0.0, or the number that a scorer returned
    answer: str | None  # as extracted from the response
    reason: str = field(default="", compare=False)  # how the verifier came to it, in a few words


@dataclass(frozen=True)
class Item:
    """One response to verify."""

    response: str
    reference: str
    metadata: dict  # the row's; the built-in tasks need {"family": str, "entry": dict}


def as_verdict(result: Any) -> Verdict:
    """What a verifier returned (a verdict, a number or a bool) as a verdict of plain str, float and str.

    Raises:
        TypeError, ValueError, OverflowError: it is none, or its reward is not finite in float32.
    """
    if isinstance(result, Verdict):
        verdict = str(result.verdict)
        reward = float(result.reward)
        answer = None if result.answer is None else str(result.answer)
        reason = str(result.reason)
    elif isinstance(result, SupportsFloat):  # also numpy's and torch's scalars, but no str
        reward = float(result)
        verdict = "match" if reward > 0.5 else "mismatch"
        answer = None
        reason = ""
    else:
        raise TypeError(f"a verifier must return a number, a bool or a Verdict, not {type(result).__name__}")
    if verdict not in VERDICTS:
        raise ValueError(f"a verifier's verdict must be one of {VERDICTS}, not {verdict[:100]!r}")
    # The comparison is false for NaN too.
    if not abs(reward) <= MAX_REWARD:
        raise ValueError(f"a verifier's reward must be finite in float32, not {reward}")
    return Verdict(verdict, reward, answer, reason)


def resolve(name: str, path: str | None = None, function: Callable | None = None) -> Verify:
    """The verifier to call with (response, reference, metadata).

    Args:
        name: one of `BUILT_IN`, unless one of the others is given; `ENVIRONMENT` where `path` is one.
        path: the user's own, as "file.py:function".
        function: the user's own, as a Python callable.

    Raises:
        UserError: there is no such verifier, or it takes other arguments.
    """
    if function is not None:
        label = getattr(function, "__qualname__", type(function).__name__)
        return _with_metadata(function, f"verifier: {label}")
    if name == ENVIRONMENT:
        return importlib.import_module("srft_ray.verify.environment").load(path)
    if path:
        return _with_metadata(load_object(path, "verifier.path", "function"), f"verifier.path: {path}")
    if name not in BUILT_IN:
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)[0]
        raise UserError(
            f"verifier.name: there is no verifier {name!r}, did you mean {nearest!r}? "
            f"(one of {', '.join(BUILT_IN)}, or set verifier.path to your own file.py:function)"
        )
    return importlib.import_module(BUILT_IN[name]).verify


def _with_metadata(function: Callable, label: str) -> Verify:
    """`function` as one that takes metadata too. UserError where it takes neither three nor two arguments."""
    for count in (3, 2):
        try:
            inspect.signature(function).bind(*range(count))
        except TypeError:
            continue
        if count == 3:
            return function
        return lambda response, reference, metadata: function(response, reference)
    raise UserError(f"{label} must take (response, reference, metadata) or (response, reference)")


def after_hashes(text: str) -> str | None:
    """What follows `#### ` on the last line that begins with it, as in GSM8K."""
    found = re.findall(r"^[ \t]*####[ \t]+(.*)$", text, re.MULTILINE)
    return found[-1].strip() if found else None
