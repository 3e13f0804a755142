r"""Mathematical answers and multiple choice: `\boxed{...}`, `#### ...`, else what math-verify finds in the text."""
import logging
import re

from math_verify import parse
from math_verify import verify as equal

from srft_ray.verify.extract import after_hashes, last_boxed
from srft_ray.verify.verdict import Verdict

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns when its time-outs are off, as they are here

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d*)?)[eE]([+-]?\d+)")
_INTEGER = re.compile(r"[+-]?\d{1,4000}")
_CHOICE = re.compile(r"(?:\\(?:text|mathrm|mathbf|textbf)\s*\{|[\s({\[*$])*([A-Ea-e])[\s)}\].:*$]*")
_CHOICE_AND_TEXT = re.compile(r"[\s({\[*]*([A-E])\s?[).:}\]*].*", re.DOTALL)
_CHOICE_IN_PROSE = re.compile(r"(?i:answer|choice|option)(?i:\s+is)?[^A-Za-z\n]{0,8}([A-E])(?![A-Za-z])")


def verify(response: str, reference: str, metadata: dict) -> Verdict:
    """Compare the final answer of `response` with `reference`, which may be plain or boxed."""
    gold, answer = _plain(last_boxed(reference) or reference), last_boxed(response)
    if answer is None:
        answer = after_hashes(response)
    if answer == "":
        return Verdict("no_answer", 0.0, None)
    letter = _CHOICE.fullmatch(gold)
    if letter and letter[1].isupper():
        found = _find_choice(response, answer)
        if found or answer is None:
            return _verdict(found == letter[1], found)
    return _compare_text(response, gold) if answer is None else _compare(answer, gold)


def warm_up() -> None:
    """Fill the grammar's caches, so that a worker forked afterwards judges its first item as fast as the next."""
    verify(r"\boxed{\frac{x^{2} + 1}{2}}", r"\sqrt{2} \cdot 10^{-3} + y", {})
    verify(r"\boxed{\left( 3, \frac{\pi}{2} \right)}", "(3, 0.5)", {})
    verify("so it is $(1, 2)$", "7", {})


def _find_choice(response: str, answer: str | None) -> str | None:
    text = response if answer is None else answer
    prose = list(_CHOICE_IN_PROSE.finditer(response)) if answer is None else []
    found = _CHOICE.fullmatch(text) or _CHOICE_AND_TEXT.fullmatch(text) or (prose and prose[-1])
    return found[1].upper() if found else None


def _compare(answer: str, gold: str) -> Verdict:
    plain = _plain(answer)
    if _INTEGER.fullmatch(plain) and _INTEGER.fullmatch(gold):
        return _verdict(int(plain) == int(gold), answer)
    return _verdict(plain == gold or equal(_parse(gold), _parse(plain), timeout_seconds=None), answer)


def _compare_text(response: str, gold: str) -> Verdict:
    found = parse(response, parsing_timeout=None)
    return _verdict(equal(_parse(gold), found, timeout_seconds=None), str(found[-1]) if found else None)


def _plain(text: str) -> str:
    r"""Drop `$`, a full stop and thousands commas; 1.2e-8 becomes LaTeX, which would read it as 1.2*e - 8."""
    text = text.replace("\\$", "").strip().strip("$").rstrip(".").strip()
    text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
    return _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text) if _SCIENTIFIC.fullmatch(text) else text


def _parse(answer: str) -> list:
    return parse(f"\\boxed{{{answer}}}", parsing_timeout=None)


def _verdict(matches: bool, answer: str | None) -> Verdict:
    verdict = "no_answer" if answer is None else "match" if matches else "mismatch"
    return Verdict(verdict, float(verdict == "match"), answer)
