r"""Where the final answer of a response stands: `\boxed{...}` or, as in GSM8K, a line `#### ...`."""
import re


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces balance; an unfinished one does not count."""
    open_at, start, end = [], -1, -1
    for token in re.finditer(r"(\\boxed\s*\{)|(?<!\\)[{}]", text):
        if token.group() != "}":
            open_at.append(token.end() if token[1] else -1)
        elif open_at and (opened := open_at.pop()) > start:
            start, end = opened, token.start()
    return text[start:end].strip() if start >= 0 else None


def after_hashes(text: str) -> str | None:
    """What follows `#### ` on the last line that begins with it."""
    found = re.findall(r"^[ \t]*####[ \t]+(.*)$", text, re.MULTILINE)
    return found[-1].strip() if found else None
