"""The timeline of a run: what learners record, and the trace that viewers open."""

import json
import time

import jsonschema
import psutil
import pytest

from algorithms import Group
from srft_ray import imports
from srft_ray.commands.cli import main
from srft_ray.observe import journal
from srft_ray.observe.rewind import rewind
from srft_ray.observe.start import StartClock, latest, newest_starts
from srft_ray.observe.timeline import TRACE, Timeline, write_newest_trace, write_trace

# The Trace Event Format (of Chromium's documentation), as far as complete events and metadata go. Times are
# in microseconds; viewers drop an event of which a field is missing or has another type.
NUMBERS = {"pid": {"type": "integer"}, "tid": {"type": "integer"}}
TEXT = {"type": "string", "minLength": 1}
TIME = {"type": "number", "minimum": 0}
COMPLETE = {
    "required": ["name", "cat", "ph", "ts", "dur", "pid", "tid"],
    "properties": {
        **NUMBERS,
        "name": TEXT,
        "cat": TEXT,
        "ph": {"const": "X"},
        "ts": TIME,
        "dur": TIME,
        "args": {"type": "object"},
    },
    "additionalProperties": False,
}
METADATA = {
    "required": ["name", "ph", "pid", "tid", "args"],
    "properties": {
        **NUMBERS,
        "name": {"enum": ["process_name", "thread_name"]},
        "ph": {"const": "M"},
        "args": {"type": "object", "required": ["name"], "properties": {"name": TEXT}},
    },
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "traceEvents": {"type": "array", "items": {"type": "object", "oneOf": [COMPLETE, METADATA]}},
    },
    "additionalProperties": False,
}
PHASES = {"rollout wait": (10.0, 12.0), "update": (12.0, 12.5), "publish": (12.5, 12.6)}


def group(number: int, engine: str, start: float) -> Group:
    return Group(
        0,
        number,
        "p",
        [1],
        "r",
        engine=engine,
        asked_at=start,
        started_at=start + 1,
        finished_at=start + 3,
        judged_at=start + 3.5,
    )


@pytest.fixture
def run_dir(tmp_path):
    """Three steps of two learners; each learner has the groups of one engine, two blocks of two groups."""
    begin = time.time()
    for rank, engine in enumerate(("aaaa", "bbbb")):
        timeline = Timeline(tmp_path, rank)
        for step in range(3):
            starts = [begin + 10 * step, begin + 10 * step, begin + 10 * step + 2, begin + 10 * step + 2]
            groups = [group(number, engine, start) for number, start in enumerate(starts)]
            timeline.step(step, PHASES, [*groups, Group(0, -1, "", [], "")])
    return tmp_path


def spans(trace) -> list[tuple[str, str, float, float]]:
    """(process and line, name, start, duration), in seconds."""
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    return [
        (names[event["pid"], event["tid"]], event["name"], event["ts"] / 1e6, event["dur"] / 1e6)
        for event in trace["traceEvents"]
        if event["ph"] == "X"
    ]


def test_a_trace_has_the_phases_of_learners_and_the_blocks_of_engines(run_dir):
    assert write_trace(run_dir, run_dir / TRACE, 1, 2) == 2 * (3 + 2 * 3)
    found = spans(json.loads((run_dir / TRACE).read_text()))
    assert {line for line, *_ in found} == {"learner 0", "learner 1", "engine aaaa", "engine bbbb"}
    durations = sorted((name, round(took, 3)) for line, name, _, took in found if line == "learner 1")
    assert durations == [("publish", 0.1), ("rollout wait", 2.0), ("update", 0.5)]
    of_engine = [(name, round(took, 3)) for line, name, _, took in found if line == "engine aaaa"]
    assert of_engine == [("wait", 1.0), ("generation", 2.0), ("judging", 0.5)] * 2


def test_every_event_is_as_the_format_says(run_dir):
    write_newest_trace(run_dir)
    trace = json.loads((run_dir / TRACE).read_text())
    jsonschema.validate(trace, SCHEMA)
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert min(event["ts"] for event in complete) == 0
    assert {event["args"]["step"] for event in complete} == {0, 1, 2}
    for key in ("tid", "dur"):
        broken = [{name: value for name, value in event.items() if name != key} for event in complete]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"traceEvents": broken}, SCHEMA)


def test_steps_that_are_repeated_are_there_once(run_dir):
    rewind(run_dir, 1)
    Timeline(run_dir, 0).step(1, PHASES, [])
    write_trace(run_dir, run_dir / TRACE)
    steps = [
        event["args"]["step"]
        for event in json.loads((run_dir / TRACE).read_text())["traceEvents"]
        if event["name"] == "update"
    ]
    assert sorted(steps) == [0, 0, 1]


def test_the_command(run_dir, capsys):
    target = run_dir / "some.json"
    assert main(["timeline", str(run_dir), "--first", "2", "--output", str(target)]) == 0
    assert f"18 events in {target}" in capsys.readouterr().out and target.exists()
    assert main(["timeline", str(run_dir), "--first", "9"]) == 2
    assert "has recorded no time of such steps" in capsys.readouterr().err
    assert main(["timeline", str(run_dir / "none")]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_what_storage_refuses_is_an_event(run_dir):
    (run_dir / TRACE).mkdir()
    write_newest_trace(run_dir)
    [event] = journal.read_json_lines(run_dir / "events.jsonl")
    assert "timeline.json could not be written" in event["message"]


def write_start(run_dir, who, begin, step=0, **seconds):
    """A start whose phases follow each other."""
    clock = StartClock()
    for name, took in seconds.items():
        clock.spans[name] = (begin, begin + took)
        begin += took
    clock.write(run_dir, who, step)


def test_a_trace_has_the_starts_of_all_processes(run_dir):
    write_start(run_dir, "driver", 5.0, process=1, imports=2, data=3)
    write_start(run_dir, "learner 0", 12.0, process=1, imports=2, model=0.5)
    write_start(run_dir, "learner 0", 50.0, step=2, process=1, imports=2, model=0.5)
    write_start(run_dir, "engine aaaa", 13.0, process=1, imports=4, engine=2)
    write_trace(run_dir, run_dir / TRACE)
    trace = json.loads((run_dir / TRACE).read_text())
    jsonschema.validate(trace, SCHEMA)
    found = [(line, name, took) for line, name, _, took in spans(trace) if name.startswith("start: ")]
    assert ("driver", "start: data", 3.0) in found and ("engine aaaa", "start: imports", 4.0) in found
    assert found.count(("learner 0", "start: model", 0.5)) == 2
    write_trace(run_dir, run_dir / TRACE, 1)
    starts = [found for found in spans(json.loads((run_dir / TRACE).read_text())) if "start" in found[1]]
    assert {line for line, *_ in starts} == {"learner 0"} and len(starts) == 3


def test_the_newest_start_is_that_of_the_newest_command(tmp_path):
    write_start(tmp_path, "driver", 5.0, data=3)
    write_start(tmp_path, "engine aaaa", 9.0, engine=2)
    write_start(tmp_path, "driver", 105.0, data=3)
    write_start(tmp_path, "learner 0", 110.0, model=3)
    write_start(tmp_path, "engine bbbb", 109.0, engine=2)
    write_start(tmp_path, "engine bbbb", 300.0, step=7, engine=2)  # after its death
    assert [(record["who"], record["step"]) for record in newest_starts(tmp_path)] == [
        ("driver", 0),
        ("engine bbbb", 0),
        ("learner 0", 0),
    ]


def test_of_many_processes_those_that_were_ready_last_are_shown(run_dir):
    write_start(run_dir, "driver", 5.0, data=3)
    for number in range(1_000):
        began = 9.0 + number % 7
        write_start(run_dir, f"engine {number}", began, engine=1_000.0 + number - began)
    every = newest_starts(run_dir)
    shown = [record["who"] for record in latest(every, 40)]
    assert set(shown) == {f"engine {number}" for number in range(960, 1_000)}
    assert shown == [record["who"] for record in every if record["who"] in shown], "in the same order"
    assert latest(every[:3], 40) == every[:3]


def test_a_clock_begins_with_its_process_where_that_imported():
    imports.took.clear()
    with imports.large_imports():
        time.sleep(0.01)
    clock = StartClock()
    clock.mark("model")
    process, imported, model = (clock.spans[name] for name in ("process", "imports", "model"))
    assert process[0] == pytest.approx(psutil.Process().create_time(), abs=1.5)
    assert process[1] == imported[0] and imported[1] == model[0] and imported[1] - imported[0] >= 0.01
    second = StartClock()  # of a second run in the same process
    second.mark("data")
    assert set(second.spans) == {"data"}
