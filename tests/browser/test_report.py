"""The page of a run in a real browser: every view, no error, no request, and hostile text stays text."""

import json

import pytest

from srft_ray.commands.report import report
from tests.browser import chromium
from tests.unit.test_page import HOSTILE, write_run

BROWSER = chromium.find()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium was found: install one, or name it in SRFT_CHROMIUM"
)
VIEWS = ("overview", "groups", "tokens", "evaluation", "comparison")
COUNT = 200  # hostile strings


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium.page(BROWSER, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    texts = [f"{HOSTILE[number % len(HOSTILE)]} {number}" for number in range(COUNT)]
    first = write_run(folder / "hos<i>tile", texts, steps=5, groups=10)
    second = write_run(folder / "other", texts, steps=5, groups=10)
    return report([first, second], everything=True)


def choose(page, label, value):
    page.run(
        f"(() => {{ const s = document.querySelector('select[aria-label=\"{label}\"]'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change')); })()"
    )


def text_of_view(page):
    return page.run("document.getElementById('view').innerText")


def test_every_view_is_drawn_and_clicked_through(page, file):
    seconds = page.open(file.as_uri())
    print(f"loaded in {seconds:.2f} s, {file.stat().st_size / 1e6:.2f} MB")
    assert page.run("document.querySelectorAll('figure svg path').length") >= 8
    for view in VIEWS:
        page.run(f"document.getElementById('tab-{view}').click()")
        assert page.run("document.querySelector('[aria-selected=true]').textContent") == view
        assert len(text_of_view(page)) > 50, view
    page.run("document.getElementById('tab-groups').click()")
    before = page.run("document.querySelectorAll('section.group').length")
    choose(page, "step", 2)
    assert page.run("document.querySelectorAll('section.group').length") == 10 < before
    assert "step 2, group 20" in text_of_view(page)
    page.run("document.querySelector('section.group button').click()")
    assert page.run("document.querySelectorAll('.tokens span').length") == 2
    assert page.run("document.querySelector('.tokens span').style.backgroundColor") != ""
    page.run("document.getElementById('tab-evaluation').click()")
    choose(page, "prompts", "better")
    assert "4 prompts" in text_of_view(page)
    choose(page, "against", 1)
    assert "0 prompts" in text_of_view(page), "the two runs are the same"
    assert page.problems == []


def test_hostile_text_stays_text(page, file):
    page.open(file.as_uri())
    allowed = page.run("document.querySelectorAll('script').length")
    assert allowed == 2
    for view in VIEWS:
        page.run(f"document.getElementById('tab-{view}').click()")
        assert page.run("document.title") == "hos<i>tile, other"
        assert (
            page.run("document.querySelectorAll('iframe, img, base, object, embed, link[href^=http]').length")
            == 0
        )
        assert page.run("document.querySelectorAll('a, i, b').length") == 0
        assert page.run("document.querySelectorAll('script').length") == allowed
        handlers = (
            "[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => /^on/.test(a.name)))"
        )
        assert page.run(f"{handlers}.length") == 0
    shown = page.run("JSON.stringify(DATA.runs[0].groups.shown.map(g => g.completions.map(c => c.text)))")
    assert "<img src=x onerror=" in shown
    assert page.requests and all(url.startswith(("file:", "data:")) for url in page.requests)
    assert {url for url in page.requests if url.startswith("file:")} == {file.as_uri()}


def test_a_phone_needs_no_sideways_scrolling_and_dark_is_dark(page, file):
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.open(file.as_uri())
    for view in VIEWS:
        page.run(f"document.getElementById('tab-{view}').click()")
        assert page.run("document.documentElement.scrollWidth") <= 360, view
    dark = page.run("getComputedStyle(document.body).backgroundColor")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    light = page.run("getComputedStyle(document.body).backgroundColor")
    assert (dark, light) == ("rgb(20, 24, 31)", "rgb(255, 255, 255)")
    page.call("Emulation.clearDeviceMetricsOverride")


def test_methods_are_told_apart_and_stand_with_their_chosen_model(page, tmp_path):
    """Two with one algorithm and seed, of which the first stopped early: its model is not its last."""
    folders = [write_run(tmp_path / f"{name}-seed3", ["fine"]) for name in ("warm", "long")]
    for folder in folders:
        records = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        for record, average in zip(records, (10.0, 42.0, 11.0), strict=True):
            record |= {"avg": average, "demo_loss": 1.0}
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folders[0] / "summary.json").write_text(json.dumps({"steps": 3, "model_step": 1}))
    page.open(report(folders).as_uri())
    assert "loss of demonstrations (held out), nats" in text_of_view(page)
    page.run("document.getElementById('tab-comparison').click()")
    cells = "[...row.cells].map(cell => cell.textContent).join(' ')"
    rows = page.run(f"[...document.querySelector('table tbody').rows].map(row => {cells})")
    assert rows == ["warm 3 42", "long 3 11"]
    assert page.problems == []
