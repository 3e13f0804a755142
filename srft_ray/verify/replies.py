"""A worker's verdict as bytes. What a worker sends is untrusted: it is JSON, limited in size, and checked."""

import json

from srft_ray.text import MAX_LENGTH, sanitize_text
from srft_ray.verify.verifier import MAX_REWARD, VERDICTS, Verdict

MAX_REPLY_BYTES = 65_536  # holds an answer of MAX_LENGTH characters, whatever they are

MAX_REPLIES = 64  # of one message of the supervisor, a line each
ACCEPTED = b"accepted"  # the supervisor has a request
REFUSED = b"refused "  # and a sentence: there is no such verifier

MAX_REASON = 200  # characters

TIMEOUT = Verdict("timeout", 0.0, None, "the time limit of one response was reached")
ERROR = Verdict("error", 0.0, None, "the verifier failed on this response")


def encode(verdict: Verdict) -> bytes:
    answer = verdict.answer if verdict.answer is None else verdict.answer[:MAX_LENGTH]
    parts = [verdict.verdict, verdict.reward, answer, verdict.reason[:MAX_REASON]]
    text = json.dumps(parts, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def decode(reply: bytes) -> Verdict:
    """The verdict in `reply`, with its answer sanitized; `error` where `reply` is no such thing."""
    try:
        verdict, reward, answer, reason = json.loads(reply.decode("utf-8", "surrogatepass"))
        return checked(verdict, reward, answer, reason)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return ERROR


def checked(verdict: object, reward: object, answer: object, reason: object = "") -> Verdict:
    """A Verdict of these parts. Raises TypeError or ValueError where they do not make one."""
    if not isinstance(verdict, str) or verdict not in VERDICTS:
        raise ValueError("not a verdict")
    if not isinstance(reward, float) or not abs(reward) <= MAX_REWARD:
        raise ValueError("not a finite reward")
    if not isinstance(answer, str | None):
        raise TypeError("not an answer")
    if not isinstance(reason, str):
        raise TypeError("not a reason")
    shown = answer if answer is None else sanitize_text(answer)
    return Verdict(verdict, reward, shown, sanitize_text(reason, MAX_REASON))
