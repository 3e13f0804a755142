"""The documentation: generated pages are current, links resolve, and the named files exist."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from srft_ray.config.load import all_keys
from srft_ray.config.settings import setting

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted(DOCS.glob("*.md")))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```", re.DOTALL)
SOURCE_FILE = re.compile(r"`((?:srft_ray|algorithms)/[\w/]+\.py)`")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_are_current(tool):
    for name, content in tool.pages().items():
        committed = (DOCS / name).read_text()
        assert committed.strip() == content.strip(), f"docs/{name} is old: run python tools/make_docs.py"


def test_every_setting_is_on_the_page(tool):
    page = tool.configuration_markdown()
    for key in all_keys():
        assert f"`{key}`" in page or f"## {key}\n" in page


def test_a_setting_without_documentation_is_refused(tool):
    @dataclass
    class Section:
        """A section."""

        known: int = setting(1, "Documented.", least=0)
        forgotten: int = 2

    with pytest.raises(ValueError, match=r"section\.forgotten has no documentation"):
        tool.section_markdown("section", Section)


def test_the_table_of_a_section(tool):
    @dataclass
    class Section:
        """A section."""

        rate: float | None = setting(1e-6, "A rate.", may_change=True, above=0, most=1)
        kind: str = setting("a", "A choice.", choices=("a", "b"))
        names: list[str] = setting(list, "Names.")  # noqa: RUF009

    assert tool.section_markdown("s", Section).splitlines()[-3:] == [
        "| `s.rate` | float or null | `1e-6` | > 0, ≤ 1 | yes | A rate. |",
        "| `s.kind` | str | `a` | `a`, `b` | no | A choice. |",
        "| `s.names` | list of str | `[]` | – | no | Names. |",
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = CODE.sub("", page.read_text())
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}: no such heading"


def test_the_readme_is_for_newcomers():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_files_that_the_architecture_names_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in SOURCE_FILE.findall(text):
        assert (ROOT / name).is_file(), f"ARCHITECTURE.md names {name}, which does not exist"


def test_the_way_of_one_prompt_names_each_file_once():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.split("## The way of one prompt", 1)[1].split("\n## ", 1)[0]
    steps = re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)
    files = [name for step in steps for name in SOURCE_FILE.findall(step)]
    assert all(SOURCE_FILE.match(step) for step in steps)
    assert 10 <= len(files) <= 20
    assert len(set(files)) == len(files)
