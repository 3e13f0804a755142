"""Writes the generated pages of docs/: `python tools/make_docs.py`. A test keeps the committed pages current.

configuration.md comes from the config schema, algorithms.md from the algorithm classes, metrics.md from the
reference of metrics beside the code that records them.
"""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

from omegaconf import MISSING

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
METRICS_REFERENCE = "srft_ray.observe.metrics_reference"

CONFIGURATION_HEADER = """# Configuration

Made from the schema in `srft_ray/config/` by `python tools/make_docs.py`; a test compares the two.

A config is a YAML file with the sections below. Every key can also be given as `section.key=value` on the
command line, which takes precedence. An unknown key, a value of another type and a value outside its limits
are refused, with exit code 2 and one sentence that names the key. `srft-ray plan CONFIG` prints the config
with all defaults filled in; a run writes it to `config.yaml` in its run directory.

- **Type**: `float` also accepts whole numbers. "or null" means that the key may be left empty. `[min, max]`
  are the bounds of an elastic run.
- **Resume**: whether a run may be continued with another value. "no" means that the value decides what is
  computed: a run directory whose config differs in it is refused. `trainer.steps` is special: a run may be
  lengthened unless the steps done depend on it.
- **Paths** are relative to the directory in which the command runs."""

ALGORITHM_SECTION = """## algorithm

Which algorithm is trained, and its settings. Without the section it is `{name: srft}`.

| key | type | default | limits | resume | meaning |
|---|---|---|---|---|---|
| `algorithm.name` | str | `srft` | a registered name | no | Name of the algorithm, see \
[algorithms](algorithms.md). |
| `algorithm.path` | str | – | – | no | A class of your own, `file.py:Class`, in the place of a name, see \
[getting started](getting-started.md#an-algorithm-of-your-own). |
| `algorithm.<setting>` | | | | no | A setting of the algorithm, such as `algorithm.sft_scale`; \
[algorithms](algorithms.md) has the settings and defaults of each. |"""

TABLE_HEAD = """| key | type | default | limits | resume | meaning |
|---|---|---|---|---|---|"""


def configuration_markdown() -> str:
    """docs/configuration.md.

    Raises:
        ValueError: a setting has no documentation.
    """
    from srft_ray.config.schema import Config

    sections = dataclasses.fields(Config)
    contents = ", ".join(f"[{item.name}](#{item.name})" for item in sections)
    parts = [CONFIGURATION_HEADER, f"Sections: {contents}."]
    for item in sections:
        typed = dataclasses.is_dataclass(item.type)
        parts.append(section_markdown(item.name, item.type) if typed else ALGORITHM_SECTION)
    return "\n\n".join(parts) + "\n"


def section_markdown(name: str, section: type[Any]) -> str:
    """The part of docs/configuration.md about one section: its docstring and a table of its keys.

    Raises:
        ValueError: a setting has no documentation.
    """
    return "\n".join([f"## {name}", "", section.__doc__ or "", "", TABLE_HEAD, *_rows(name, section)])


def _rows(name: str, section: type[Any]) -> list[str]:
    """A row for each key; behind a key that is a section itself stand those of that section."""
    rows = list[str]()
    for item in dataclasses.fields(section):
        rows.append(_row(name, item))
        if dataclasses.is_dataclass(item.type):
            rows += _rows(f"{name}.{item.name}", item.type)
    return rows


def _row(section: str, item: dataclasses.Field[Any]) -> str:
    key = f"{section}.{item.name}"
    text = item.metadata.get("doc", "")
    if not text:
        raise ValueError(f"{key} has no documentation: define it by `setting` with a sentence about it")
    resume = "yes" if item.metadata["may_change"] else "no"
    limits = _limits(**item.metadata["limits"])
    cells = (f"`{key}`", _type(item.type), _default(item), limits, resume, text)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _type(kind: Any) -> str:
    if kind is Any:  # OmegaConf has no type for a number or a list: only the bounds of elastic runs use Any
        return "int or [min, max]"
    names = [_type(part) for part in get_args(kind) if part is not type(None)]
    origin = get_origin(kind)
    if origin is list:
        return f"list of {names[0]}"
    if origin is dict or dataclasses.is_dataclass(kind):
        return "mapping"
    if type(None) in get_args(kind):
        return f"{' or '.join(names)} or null"
    return kind.__name__


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    if value == MISSING:
        return "required"
    if value is None or dataclasses.is_dataclass(value):
        return "–"
    shown = str(value).lower() if isinstance(value, bool) else str(value).replace("e-0", "e-")
    return f"`{shown}`"


def _limits(choices: tuple[Any, ...] = (), least: Any = None, above: Any = None, most: Any = None) -> str:
    found = [f"`{choice}`" for choice in choices]
    found += [
        f"{sign} {limit}" for sign, limit in (("≥", least), (">", above), ("≤", most)) if limit is not None
    ]
    return ", ".join(found) or "–"


def pages() -> dict[str, str]:
    """The content of each generated page by its file name; without metrics.md if its reference is missing."""
    from srft_ray.commands import list_algorithms

    made = {
        "algorithms.md": list_algorithms.markdown().rstrip() + "\n",
        "configuration.md": configuration_markdown(),
    }
    if importlib.util.find_spec(METRICS_REFERENCE):
        reference = importlib.import_module(METRICS_REFERENCE)
        made["metrics.md"] = reference.metrics_markdown().rstrip() + "\n"
    return made


def main() -> None:
    made = pages()
    for name, content in made.items():
        (DOCS / name).write_text(content)
        print(f"wrote docs/{name}")
    if "metrics.md" not in made:
        print(f"left out docs/metrics.md: there is no {METRICS_REFERENCE}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
