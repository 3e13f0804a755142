"""The verifier of the built-in tasks: reasoning-gym's own scorers, and the tests of programs."""

from srft_ray.tasks import PROGRAM_FAMILIES, task_dataset
from srft_ray.verify import code_verifier
from srft_ray.verify.verifier import Verdict, after_hashes


def verify(response: str, reference: str, metadata: dict) -> Verdict:
    """reasoning-gym's score of the answer after the last `#### `; for programs as the verifier `code`.

    The reward keeps partial credit, but only a full score is a match. `metadata` is that of the row:
    {"family": a name of the built-in tasks, "entry": the entry's own metadata}.
    """
    if metadata["family"] in PROGRAM_FAMILIES:
        return code_verifier.verify(response, reference, {})
    answer = after_hashes(response)
    if not answer:
        return Verdict("no_answer", 0.0, None)
    dataset = task_dataset(metadata["family"], "score")
    score = dataset.score_answer(answer, {"answer": reference, "metadata": metadata["entry"]})
    return Verdict("match" if score >= 1.0 else "mismatch", score, answer)


def warm_up() -> None:
    """Import reasoning-gym once, before workers are forked: it takes a second."""
    import reasoning_gym  # noqa: F401
