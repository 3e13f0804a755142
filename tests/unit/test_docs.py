"""The documentation: generated pages are current, links resolve, and the named files exist."""

import ast
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from srft_ray.config.load import all_keys, make_config
from srft_ray.config.settings import setting
from srft_ray.verify.verifier import Verdict, as_verdict

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted(DOCS.glob("*.md")))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
KEY = re.compile(
    r"`((?:run|cluster|model|data|rollout|learner|trainer|evaluation|verifier|hardware)\.[a-z_]+)"
)
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


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_the_keys_that_pages_name_exist(page):
    assert set(KEY.findall(page.read_text())) <= set(all_keys())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", DOCS / "getting-started.md"], ids=lambda page: page.name
)
def test_the_configs_on_the_pages_are_valid(page):
    configs = [block for block in blocks(page, "yaml") if block.startswith("run:")]
    assert len(configs) == 1
    make_config(yaml.safe_load(configs[0]))


def test_the_verifier_on_the_page():
    source = next(block for block in blocks(DOCS / "getting-started.md", "python") if "def judge" in block)
    scope: dict = {}
    exec(source, scope)
    assert as_verdict(scope["judge"]("Answer: 4", "4", {})).verdict == "match"
    assert as_verdict(scope["judge"]("Answer: 5", "4", {})).reward == 0.0
    assert scope["judge"]("Answer: ", "4", {}) == Verdict("no_answer", 0.0, None)


FOREIGN_MESSAGES = (
    "Missing authentication token",
    "operator torchvision::nms does not exist",
    "cannot import name 'Algorithm' from 'algorithms'",
)


def messages() -> list[str]:
    """The texts of the code; what is filled in is shown as …"""
    found = [(ROOT / "Makefile").read_text()]
    for file in ROOT.glob("srft_ray/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_on_the_page_are_those_of_the_code():
    known = messages()
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) >= 25
    quoted = [text for row in rows for text in re.findall(r"`([^`]*)`", row)]
    for sentence in (text for text in quoted if " " in text):
        parts = [part.strip() for part in sentence.split("…") if len(part.strip()) > 3]
        said = any(all(part in text for part in parts) for text in known)
        assert said or sentence in FOREIGN_MESSAGES, f"no message of the code is {sentence!r}"
