"""Text from outside (models, verifiers, data) made safe to store, print and render."""

import re

MAX_LENGTH = 10_000
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control characters but for tab and newline (ESC begins a terminal's sequences, C1 holds one-byte forms of
# them), lone surrogates (no encoding can write them), and marks that reorder the text around them.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def sanitize_text(text: str, max_length: int = MAX_LENGTH) -> str:
    """`text` cut to `max_length` characters, each character that is unsafe to show replaced."""
    text = text[:max_length]
    if text.isprintable():
        return text
    return _UNSAFE.sub(REPLACEMENT, text)
