"""What goes into a verifier and what comes out."""
import math
from dataclasses import dataclass
from typing import Any, SupportsFloat

VERDICTS = ("match", "mismatch", "no_answer", "timeout", "error")


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
        raise ValueError(f"a verifier's verdict must be one of {VERDICTS} and its reward finite, not {result}")
    return Verdict(result.verdict, float(result.reward), None if result.answer is None else str(result.answer))
