"""The verifier of the world "strings"."""

import re

from srft_ray.verify import Verdict

ANSWER = re.compile(r"=([a-f]{4})\s*")


def judge(response: str, reference: str) -> Verdict:
    """A response is right if it ends in the equals sign and the right state."""
    _, equals, last = response.rpartition("=")
    found = ANSWER.fullmatch(equals + last)
    if found is None:
        return Verdict("no_answer", 0.0, None)
    answer = found.group(1)
    is_right = answer == reference
    return Verdict("match" if is_right else "mismatch", float(is_right), answer)
