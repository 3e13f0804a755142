"""`report.html`: one file that shows a run, or several, in a browser, without a server and without a network.

What a model wrote is untrusted. It is in the page as JSON inside a script element that no browser executes,
with every character escaped that could end it; the script puts it into the page as text only. The page's
policy allows its own script and style by their hashes, and nothing else: no request, no form, no frame.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srft_ray.observe.journal import record_event, write_whole
from srft_ray.observe.page_comparisons import comparisons
from srft_ray.observe.page_data import Limits, Pieces, run_data

ASSETS = Path(__file__).parent / "assets"
FILE = "report.html"
# What could end a script element, begin a comment or an entity in it, or end a line of JavaScript.
ESCAPES = {character: f"\\u{ord(character):04x}" for character in "<>&'\u2028\u2029"}


def write_page(
    run_dirs: Sequence[Path],
    target: Path,
    pieces: Mapping[Path, Pieces] | None = None,
    limits: Limits | None = None,
) -> Path:
    """Writes a page about runs; returns its path.

    Args:
        pieces: by run directory, what turns token ids into their texts; without it ids are shown.
        limits: how much of the ledgers is shown.
    """
    limits = limits or Limits()
    given = pieces or {}
    runs = [run_data(folder, limits, given.get(folder)) for folder in run_dirs]
    data = {"runs": runs, "comparisons": comparisons(run_dirs), "rule": limits.rule}
    title = ", ".join(folder.name for folder in run_dirs)
    write_whole(target, render(title, data))
    return target


def write_page_quietly(run_dir: Path, make_pieces: Callable[[], Pieces]) -> None:
    """Writes the page of a run that has ended. What goes wrong becomes an event of the run, nothing else."""
    try:
        write_page([run_dir], run_dir / FILE, {run_dir: make_pieces()})
    except Exception as error:
        record_event(run_dir, "report", f"{FILE} could not be written ({type(error).__name__}: {error})")


def render(title: str, data: Mapping[str, Any]) -> str:
    """The page as HTML."""
    style = (ASSETS / "report.css").read_text()
    script = "".join((ASSETS / name).read_text() for name in ("plots.js", "report.js"))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": escaped_json(data),
        "SCRIPT": script,
    }
    page = (ASSETS / "report.html").read_text()
    # One pass over the template: what is filled in is never searched for places to fill.
    pieces = page.split("@@")
    return "".join(parts.get(piece, piece) if place % 2 else piece for place, piece in enumerate(pieces))


def escaped_json(data: Any) -> str:
    """JSON that can stand in a script element: it is read back as the same data, and holds no markup."""
    text = json.dumps(_finite(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _finite(value: Any) -> Any:
    """The data with null for numbers that JSON has no notation for, and floats of six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
