"""The built-in tasks: reasoning-gym's own score of the answer after the last `#### `."""
import reasoning_gym  # noqa: F401  takes a second to import: paid once here, not by each new worker's first item

from srft_ray.data import tasks
from srft_ray.verify.extract import after_hashes
from srft_ray.verify.verdict import Verdict


def verify(response: str, reference: str, metadata: dict) -> Verdict:
    """Score the response's answer; the reward keeps partial credit, but only a full score is a match."""
    answer = after_hashes(response)
    if not answer:
        return Verdict("no_answer", 0.0, None)
    score = tasks.score(answer, metadata["family"], reference, metadata["entry"])
    return Verdict("match" if score >= 1.0 else "mismatch", score, answer)
