"""The lenient grader of published scripts: math-verify or a comparison of normalised texts says "right".

The texts are normalised as by `is_equiv` of the MATH benchmark (Hendrycks et al., arXiv 2103.03874).
Published scripts that accept what either of two graders accepts give higher figures than math-verify alone.
"""

import re

from srft_ray.verify import math_verifier
from srft_ray.verify.math_verifier import last_boxed
from srft_ray.verify.verifier import Verdict

# What is removed or written in one way, in this order.
REPLACEMENTS = (
    (re.compile(r"\\(?:left|right|!|,|;|:|displaystyle)"), ""),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\^\s*\{?\\circ\}?"), ""),
    (re.compile(r"\\?%|\\?\$"), ""),
    (re.compile(r"(?<=\S)\s*\\(?:text|mbox|mathrm)\s*\{\s*[^{}]*\}\s*$"), ""),  # a unit behind a number
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\sqrt\s*(\w)"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\s+"), ""),
    (re.compile(r"^[a-zA-Z]="), ""),
    (re.compile(r"^(-?)(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"^(-?)0?\.5$"), r"\1\\frac{1}{2}"),
    (re.compile(r"(?<![\d.])\.(\d)"), r"0.\1"),
    (re.compile(r"(\.\d*?)0+$"), r"\1"),
    (re.compile(r"\.$"), ""),
)


def verify(response: str, reference: str, metadata: dict) -> Verdict:
    """As the verifier `math`; an answer that it rejects is right too if the normalised texts are equal."""
    strict = math_verifier.verify(response, reference, metadata)
    if strict.verdict != "mismatch" or strict.answer is None:
        return strict
    wanted = normalised(last_boxed(reference) or reference)
    if not wanted or normalised(strict.answer) != wanted:
        return strict
    return Verdict("match", 1.0, strict.answer, "the normalised texts are equal")


def warm_up() -> None:
    math_verifier.warm_up()


def normalised(answer: str) -> str:
    """The answer in one way of writing."""
    text = answer.strip()
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text
