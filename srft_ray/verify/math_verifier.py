r"""Mathematical answers and multiple choice: `\boxed{...}`, `#### ...`, else what math-verify finds."""

import logging
import re
from dataclasses import dataclass
from functools import cache

from math_verify import parse
from math_verify import verify as equal

from srft_ray.verify.verifier import Verdict, after_hashes

# It warns when its time-outs are off, as they are here.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d*)?)[eE]([+-]?\d+)")
_INTEGER = re.compile(r"[+-]?\d{1,4000}")
LETTERS = "ABCDEFGHIJ"  # of options; a question with up to ten of them exists in MMLU-Pro


def verify(response: str, reference: str, metadata: dict) -> Verdict:
    """Compare the final answer of `response` with `reference`, which may be plain or boxed.

    `metadata["letters"]` may say which letters the options have, such as ABCD. Without it they are A to E, or
    A to J if the reference is a letter beyond E.
    """
    gold = _plain(last_boxed(reference) or reference)
    answer = last_boxed(response)
    if answer is None:
        answer = after_hashes(response)
    if answer == "":
        return Verdict("no_answer", 0.0, None, "the answer is empty")
    choice = _wanted_choice(gold, metadata)
    if choice is not None:
        letter, patterns = choice
        found = _find_choice(response, answer, patterns)
        if found or answer is None:
            return _verdict(found == letter, found, "the letters are compared")
    if answer is None:
        parsed = parse(response, parsing_timeout=None)
        found = str(parsed[-1]) if parsed else None
        is_equal = equal(_parse(gold), parsed, timeout_seconds=None)
        return _verdict(is_equal, found, "the last expression of the text, by math-verify")
    plain = _plain(answer)
    if _INTEGER.fullmatch(plain) and _INTEGER.fullmatch(gold):
        return _verdict(int(plain) == int(gold), answer, "the whole numbers are compared")
    if plain == gold:
        return _verdict(True, answer, "the texts are equal")
    return _verdict(equal(_parse(gold), _parse(plain), timeout_seconds=None), answer, "by math-verify")


def warm_up() -> None:
    """Fill the grammar's caches, so that a worker's first item takes no longer than the next."""
    verify(r"\boxed{\frac{x^{2} + 1}{2}}", r"\sqrt{2} \cdot 10^{-3} + y", {})
    verify(r"\boxed{\left( 3, \frac{\pi}{2} \right)}", "(3, 0.5)", {})
    verify("so it is $(1, 2)$", "7", {})
    verify(r"\boxed{x^{2}+1}", "1 + x^2", {})


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces balance; an unfinished one does not count."""
    open_at = []  # where the content of each open brace starts, -1 for a brace that is no \boxed
    start = end = -1
    for token in re.finditer(r"(\\boxed\s*\{)|(?<!\\)[{}]", text):
        if token.group() != "}":
            open_at.append(token.end() if token[1] else -1)
        elif open_at:
            opened = open_at.pop()
            if opened > start:
                start = opened
                end = token.start()
    return text[start:end].strip() if start >= 0 else None


@dataclass(frozen=True)
class _Patterns:
    """How one of the letters is written: alone, before the option's text, and in prose."""

    alone: re.Pattern[str]
    with_text: re.Pattern[str]
    in_prose: re.Pattern[str]


@cache
def _patterns(letters: str) -> _Patterns:
    upper = f"[{letters}]"
    either = f"[{letters}{letters.lower()}]"
    return _Patterns(
        re.compile(rf"(?:\\(?:text|mathrm|mathbf|textbf)\s*\{{|[\s({{\[*$])*({either})[\s)}}\].:*$]*"),
        re.compile(rf"[\s({{\[*]*({upper})\s?[).:}}\]*].*", re.DOTALL),
        re.compile(rf"(?i:answer|choice|option)(?i:\s+is)?[^A-Za-z\n]{{0,8}}({upper})(?![A-Za-z])"),
    )


def _wanted_choice(gold: str, metadata: dict) -> tuple[str, _Patterns] | None:
    """The letter that is right and how letters are written; None if the reference is no letter."""
    given = str(metadata.get("letters", ""))
    is_given = bool(given) and LETTERS.startswith(given)
    for letters in (given,) if is_given else ("ABCDE", LETTERS):
        found = _patterns(letters).alone.fullmatch(gold)
        if found and found[1].isupper():
            return found[1], _patterns(letters)
    return None


def _find_choice(response: str, answer: str | None, patterns: _Patterns) -> str | None:
    text = response if answer is None else answer
    prose = list(patterns.in_prose.finditer(response)) if answer is None else []
    found = patterns.alone.fullmatch(text) or patterns.with_text.fullmatch(text) or (prose and prose[-1])
    return found[1].upper() if found else None


def _plain(text: str) -> str:
    r"""Drop `$`, a full stop and thousands commas; 1.2e-8 becomes LaTeX, which would read it as 1.2*e - 8."""
    text = text.replace("\\$", "").strip().strip("$").rstrip(".").strip()
    text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
    return _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text) if _SCIENTIFIC.fullmatch(text) else text


def _parse(answer: str) -> list:
    return parse(f"\\boxed{{{answer}}}", parsing_timeout=None)


def _verdict(matches: bool, answer: str | None, how: str) -> Verdict:
    verdict = "no_answer" if answer is None else "match" if matches else "mismatch"
    reason = "no answer was found" if answer is None else how
    return Verdict(verdict, float(verdict == "match"), answer, reason)
