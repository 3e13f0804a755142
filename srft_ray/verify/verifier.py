"""A verifier: what goes in, what comes out, and how the config names one."""

import difflib
import importlib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsFloat

from srft_ray.errors import UserError
from srft_ray.plugins import load_object

VERDICTS = ("match", "mismatch", "no_answer", "timeout", "error")
BUILT_IN = {"math": "srft_ray.verify.math_verifier", "tasks": "srft_ray.data.tasks"}


@dataclass(frozen=True)
class Verdict:
    """The judgement of one response."""

    verdict: str  # one of VERDICTS; the ledger's "given" is reserved for demonstrations
    reward: float  # 1.0 or 0.0, or the number that a scorer returned
    answer: str | None  # as extracted from the response


@dataclass(frozen=True)
class Item:
    """One response to judge. `metadata` is the row's; the built-in tasks need {"family": str, "entry": dict}."""

    response: str
    reference: str
    metadata: dict


def as_verdict(result: Any) -> Verdict:
    """What a verifier returned (a verdict, a number or a bool) as a verdict; TypeError or ValueError otherwise."""
    if isinstance(result, SupportsFloat):  # also numpy's and torch's scalars, but no str
        result = Verdict("match" if float(result) > 0.5 else "mismatch", float(result), None)
    if not isinstance(result, Verdict):
        raise TypeError(f"a verifier must return a number, a bool or a Verdict, not {type(result).__name__}")
    if result.verdict not in VERDICTS or not math.isfinite(result.reward):
        raise ValueError(
            f"a verifier's verdict must be one of {VERDICTS} and its reward finite, not {result}"
        )
    return Verdict(
        result.verdict, float(result.reward), None if result.answer is None else str(result.answer)
    )


def resolve(name: str, path: str | None = None) -> Callable[[str, str, dict], Any]:
    """The verifier called `name` or, where `path` is given, the user's own ("file.py:function"); else UserError."""
    if path:
        return _with_metadata(load_object(path, "verifier.path", "function"), path)
    if name not in BUILT_IN:
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)[0]
        raise UserError(
            f"verifier.name: there is no verifier {name!r}, did you mean {nearest!r}? "
            f"(one of {', '.join(BUILT_IN)}, or set verifier.path to your own file.py:function)"
        )
    return importlib.import_module(BUILT_IN[name]).verify


def _with_metadata(function: Callable, path: str) -> Callable[[str, str, dict], Any]:
    for count in (3, 2):
        try:
            inspect.signature(function).bind(*range(count))
        except TypeError:
            continue
        return function if count == 3 else lambda response, reference, metadata: function(response, reference)
    raise UserError(
        f"verifier.path: {path} must take (response, reference, metadata) or (response, reference)"
    )


def after_hashes(text: str) -> str | None:
    """What follows `#### ` on the last line that begins with it, as in GSM8K."""
    found = re.findall(r"^[ \t]*####[ \t]+(.*)$", text, re.MULTILINE)
    return found[-1].strip() if found else None
