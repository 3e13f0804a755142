"""The page of a run: what a model wrote is inert, the data survive, and a browser shows every view."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from algorithms import Completion, Group
from srft_ray.commands.report import report
from srft_ray.commands.trace import trace
from srft_ray.errors import UserError
from srft_ray.observe import evaluation_ledger, ledger
from srft_ray.observe.journal import append_json, read_json_lines
from srft_ray.observe.page import escaped_json, render, write_page_quietly
from srft_ray.observe.page_data import Limits, run_data
from srft_ray.observe.page_groups import spread
from tests.conftest import write_jsonl

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
ALARM = "document.title='HACKED'"
HOSTILE = [
    f"</script><script>{ALARM}</script>",
    f"<img src=x onerror={ALARM}>",
    f"<svg onload={ALARM}>",
    "<!--<script>",
    "]]>",
    f"'\"><iframe srcdoc='<script>{ALARM}</script>'>",
    f"javascript:{ALARM}",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "\u2028\u2029\u202e\x00\x1b[31m",
    "@@SCRIPT@@ {{7*7}} ${7*7}",
    "</style><style>*{display:none}</style>",
    "<base href='http://example.org/'><meta http-equiv=refresh content='0;url=http://example.org'>",
    "\ud800 lone",
    "__proto__",
    "<a href='http://example.org'>click</a>",
]
FIGURES = {
    "loss": 0.5,
    "loss/sft": 0.25,
    "entropy/rollout": 1.0,
    "reward/mean": 0.5,
    "time/step": 2.0,
    "time/learner": 1.0,
    "length/mean": 7.0,
}


def completion(sample, text, reward):
    verdict = "match" if reward else "mismatch"
    return Completion(
        sample, "rollout", text, [5, 6], [-0.5, -1.5], 1, 9, "stop", reward, verdict, text, text, reward - 0.5
    )


def write_run(folder, texts, steps=3, groups=4):
    (folder / "groups").mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {seed: 3}\nalgorithm: {name: srft}\nmodel: {path: nowhere}\n")
    count = 0
    for step in range(steps):
        found = []
        for number in range(groups):
            text = [texts[(count + i) % len(texts)] for i in range(4)]
            count += 4
            completions = [completion(0, text[0], 1.0), completion(1, text[1], 0.0)]
            found.append(Group(step, step * groups + number, text[2], [1], text[3], {}, completions))
        ledger.write(folder, step, 0, found)
        append_json(folder / "metrics.jsonl", {"step": step, "time/recorded": 1e9 + 2 * step, **FIGURES})
        append_json(
            folder / "events.jsonl", {"time": 1e9 + 2.5 * step, "kind": texts[0], "message": texts[-1]}
        )
        append_json(
            folder / "checkpoints.jsonl", {"step": step + 1, "path": texts[-1], "time": 1e9 + 2 * step}
        )
        write_evaluation(folder, step, texts)
    return folder


def write_evaluation(folder, step, texts):
    groups = [
        Group(step, n, text, [1], text, {}, [completion(0, text, float(n < step))], "held<b>")
        for n, text in enumerate(texts)
    ]
    evaluation_ledger.write_part(folder, "held<b>", step, 0, groups)
    evaluation_ledger.join(folder, "held<b>", step, [0])
    shares = {
        "avg": 50.0,
        "avg_low": 40.0,
        "avg_high": 60.0,
        "pass": 50.0,
        "pass_low": 40.0,
        "pass_high": 60.0,
    }
    append_json(
        folder / "evaluations.jsonl", {"step": step, "set": "held<b>", "prompts": 2, "samples": 1, **shares}
    )


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of the data element."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.comments, self.inside = [], [], [], []
        self.data = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.inside.append((tag, dict(attrs)))

    def handle_comment(self, data):
        self.comments.append(data)

    def handle_data(self, data):
        if self.inside and self.inside[-1] == ("script", {"type": "application/json", "id": "data"}):
            self.data += data


def parsed(text):
    tags = Tags()
    tags.feed(text)
    tags.close()
    return tags


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("page") / "hos<i>tile", HOSTILE)


@pytest.fixture(scope="module")
def plain_tags(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("plain") / "run", ["fine"])
    return parsed(report([folder]).read_text()).tags


def test_what_a_model_wrote_adds_no_markup(hostile, plain_tags):
    found = parsed(report([hostile]).read_text(encoding="utf-8"))
    assert found.tags == plain_tags, "the same elements as without hostile text"
    assert found.tags.count("script") == 2 and not found.comments
    assert not [name for name in found.attributes if name.startswith("on")] and "src" not in found.attributes
    data = json.loads(found.data)
    texts = {one["text"] for group in data["runs"][0]["groups"]["shown"] for one in group["completions"]}
    assert f"</script><script>{ALARM}</script>" in texts and "@@SCRIPT@@ {{7*7}} ${7*7}" in texts
    assert not any("\u202e" in text or "\x1b" in text for text in texts)


def test_the_policy_allows_the_page_s_own_script_and_style_only(hostile):
    text = report([hostile]).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert policy.count("sha256-") == 2
    data = text.index('<script type="application/json"')
    others = text[:data] + text[text.index("</script>", data) :]
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", others)


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_element_is_read_back_as_it_was(text):
    escaped = escaped_json({"a": [text, {text: 1.5}]})
    assert json.loads(escaped) == {"a": [text, {text: 1.5}]}
    assert not set("<>&'\u2028") & set(escaped)
    assert parsed(render(text, {"x": text})).tags.count("script") == 2


def test_numbers_that_json_lacks_are_null():
    assert escaped_json([float("nan"), float("inf"), 0.1234567891, 3]) == "[null,null,0.123457,3]"


def test_a_large_ledger_is_sampled_by_the_rule_that_is_stated(tmp_path):
    folder = write_run(tmp_path / "run", ["x" * 50], steps=9, groups=3)
    limits = Limits(steps=3, groups=2, prompts=1, characters=10, tokens=1)
    data = run_data(folder, limits, None)
    shown = data["groups"]["shown"]
    assert data["groups"]["steps"] == 9 and [g["step"] for g in shown] == [0, 0, 4, 4, 8, 8]
    assert [g["id"] for g in shown] == [0, 1, 12, 13, 24, 25]
    one = shown[0]["completions"][0]
    assert (one["text"], one["tokens"], one["figures"]) == ("x" * 10, ["5"], {"logprobs": [-0.5]})
    assert "at most 3 steps" in limits.rule and "first 2 groups" in limits.rule
    everything = run_data(folder, Limits.none(), lambda ids: [f"<{token}>" for token in ids])
    assert len(everything["groups"]["shown"]) == 27
    assert everything["groups"]["shown"][0]["completions"][0]["tokens"] == ["<5>", "<6>"]
    assert spread(range(10), 1) == [9] and spread([1, 2], 5) == [1, 2]


def test_evaluations_show_what_changed_and_runs_are_compared(tmp_path):
    first = write_run(tmp_path / "a", ["p", "q", "r"])
    second = write_run(tmp_path / "b", ["p", "q", "r"])
    data = json.loads(parsed(report([first, second], tmp_path / "both.html").read_text()).data)
    held = data["runs"][0]["sets"][0]
    assert held["steps"] == [0, 1, 2] and held["averages"] == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert [len(prompt["responses"]) for prompt in held["shown"]] == [2, 2, 2]
    (found,) = data["comparisons"]
    assert (found["first"], found["second"], found["prompts"], found["mean"]) == ("a", "b", 3, 0)
    assert data["runs"][0]["about"] == {"method": "srft", "seed": 3, "model": "nowhere"}
    others = [write_run(tmp_path / name, texts) for name, texts in (("c", ["p", "x", "r"]), ("d", ["y"] * 3))]
    data = json.loads(parsed(report([first, *others], tmp_path / "all.html").read_text()).data)
    (found,) = data["comparisons"]  # none with d, whose prompts of the same numbers are others
    assert (found["second"], found["prompts"]) == ("c", 2)
    for text in ("", "- a\n", "a: [1\n", "\ud800"):
        (second / "config.yaml").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(UserError, match=r"config\.yaml"):
            report([second], tmp_path / "bad.html")


def test_an_event_is_shown_at_the_step_that_was_recorded_next(tmp_path):
    """Steps are recorded at 0, 2 and 4 s, events are at 0, 2.5 and 5 s."""
    folder = write_run(tmp_path / "run", ["some", "text"])
    assert [event["step"] for event in run_data(folder, Limits(), None)["events"]] == [0, 2, 3]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["time/recorded"]
    write_jsonl(folder / "metrics.jsonl", records)
    assert all("step" not in event for event in run_data(folder, Limits(), None)["events"])


def test_a_page_that_cannot_be_written_is_an_event_and_no_failure(tmp_path):
    def broken():
        raise ValueError("no tokenizer")

    write_page_quietly(tmp_path, broken)
    (event,) = read_json_lines(tmp_path / "events.jsonl")
    assert event["kind"] == "report" and "ValueError: no tokenizer" in event["message"]
    with pytest.raises(UserError, match="is no run directory"):
        report([tmp_path])


def test_a_trace_names_every_version_that_sampled_a_response(tmp_path):
    (tmp_path / "groups").mkdir()
    (tmp_path / "config.yaml").write_text("model: {path: nowhere}\n")
    rollout = Completion(0, "rollout", "", [1, 2, 3], [-1.0] * 3, 4, spans=[(4, 0), (5, 2)])
    ledger.write(tmp_path, 5, 0, [Group(5, 9, "", [1], "", completions=[rollout])])
    assert "version 4 from token 0 and 5 from token 2, seed" in trace(tmp_path)


def test_one_group_is_traced_token_by_token(tmp_path):
    folder = write_run(tmp_path / "run", ["\x1b[31mred"], steps=2, groups=2)
    text = trace(folder, step=0, group=1)
    assert text.startswith("step 0, group 1, 0 groups discarded") and "\x1b" not in text
    assert "rollout 1, reward 0, advantage -0.5000, verdict mismatch" in text
    assert next(line.split() for line in text.splitlines() if line.endswith("'5'")) == [
        "-0.5000",
        "–",
        "–",
        "–",
        "'5'",
    ]
    assert "step 1, group 2" in trace(folder) and trace(folder, sample=1).count("seed") == 1
    for wanted, message in (
        ({"step": 9}, "has no step 9: it has 0 to 1"),
        ({"group": 9}, "has no group 9"),
        ({"sample": 9}, "no completion 9"),
    ):
        with pytest.raises(UserError, match=message):
            trace(folder, **wanted)
    with pytest.raises(UserError, match="has no ledger"):
        trace(tmp_path)
