"""Environments: what answers the turns of a response. They run where verifiers do, with the same bounds."""

import json

from srft_ray.plugins import load_object
from srft_ray.text import MAX_LENGTH
from srft_ray.verify.verifier import Verdict, Verify


def load(path: str) -> Verify:
    """The environment `file.py:function` as a verifier, whose verdicts `reply_of` reads.

    Raises:
        UserError: there is no such function.
    """
    return as_verifier(load_object(path, "rollout.environment", "function"))


def as_verifier(environment: Verify) -> Verify:
    """The environment as a function that returns verdicts: `match` with its text, or `no_answer`."""

    def reply(response: str, reference: str, metadata: dict) -> Verdict:
        text = environment(response, reference, metadata)
        if text is None:
            return Verdict("no_answer", 0.0, None)
        if not isinstance(text, str):
            raise TypeError(f"an environment must return a text or None, not {type(text).__name__}")
        # As JSON in ASCII it passes what makes answers safe to print, which would change its characters.
        packed = json.dumps(text)
        if len(packed) > MAX_LENGTH:
            raise ValueError(f"an environment's text must not be longer than {MAX_LENGTH} characters")
        return Verdict("match", 1.0, packed)

    return reply


def reply_of(verdict: Verdict) -> str | None:
    """What the environment said; None if it ends the response.

    Raises:
        ValueError: it raised, hung, or said what is no text.
    """
    if verdict.verdict == "no_answer":
        return None
    if verdict.verdict != "match" or verdict.answer is None:
        raise ValueError(verdict.reason or "the environment failed on this response")
    # A lone surrogate is no text that a tokenizer takes.
    return json.loads(verdict.answer).encode(errors="replace").decode()
