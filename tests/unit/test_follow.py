"""What callbacks, loggers and the display are told of a run: each record once, in order, no traceback."""

import io
import time

import pytest
from rich.console import Console

from srft_ray import Callback, UserError
from srft_ray.observe import follow
from srft_ray.observe.callbacks import as_callbacks
from srft_ray.observe.follow import JournalTail, RunFollower
from srft_ray.observe.journal import (
    append_json,
    last_record,
    read_json_lines,
    record_checkpoint,
    record_event,
)
from srft_ray.observe.progress import Output, Progress
from srft_ray.observe.rewind import rewind


class Recording(Callback):
    """Keeps what it is told."""

    def __init__(self, raises_at=None):
        self.told = []
        self.raises_at = raises_at

    def on_step(self, record):
        self.told.append(("step", record["step"]))
        if record["step"] == self.raises_at:
            raise ValueError("not this step")

    def on_evaluation(self, record):
        self.told.append((record["set"], record["step"]))

    def on_checkpoint(self, step, path):
        self.told.append(("checkpoint", step))

    def on_event(self, event):
        self.told.append((event["kind"], event["message"]))


def figures(step):
    return {
        "step": step,
        "loss": 0.5,
        "entropy/rollout": 1.0,
        "reward/mean": 0.25,
        "tokens": 10.0,
        "tokens/generated": 10.0,
        "time/step": 2.0 + time.perf_counter(),
        "time/generation": 1.0,
        "time/learner": 1.0,
    }


def evaluation(step, name="held"):
    percent = {"avg": 50.0, "avg_interval": 1.0, "pass": 60.0, "pass_interval": 1.0}
    return {"step": step, "set": name, "samples": 2, "prompts": 4, "entropy": 1.0, **percent}


def do_step(run_dir, step):
    append_json(run_dir / "metrics.jsonl", figures(step))


def follower(run_dir, *listeners, resume_from=0):
    stops = []
    made = RunFollower(run_dir, listeners, resume_from, stops.append)
    made.stops = stops
    return made


def test_each_record_is_told_once_and_a_step_before_what_follows_it(tmp_path):
    told = Recording()
    run = follower(tmp_path, told)
    append_json(tmp_path / "evaluations.jsonl", evaluation(0))
    record_checkpoint(tmp_path, 2, "there")
    for step in range(2):
        do_step(tmp_path, step)
    append_json(tmp_path / "evaluations.jsonl", evaluation(2))
    append_json(tmp_path / "evaluations.jsonl", evaluation(2, "hard"))
    run.poll()
    run.poll()
    expected = [("held", 0), ("step", 0), ("step", 1), ("held", 2), ("hard", 2), ("checkpoint", 2)]
    assert told.told == expected
    do_step(tmp_path, 2)
    run.poll()
    assert told.told == [*expected, ("step", 2)]


@pytest.mark.parametrize("looks_between", [True, False])
def test_repeated_steps_are_not_told_again(tmp_path, looks_between):
    """The learners start again at step 3 and write 3, 4 and 5 once more."""
    told = Recording()
    run = follower(tmp_path, told)
    record_checkpoint(tmp_path, 3, "there")
    for step in range(6):
        do_step(tmp_path, step)
        append_json(tmp_path / "evaluations.jsonl", evaluation(step))
    run.poll()
    before = list(told.told)
    rewind(tmp_path, 3)
    assert last_record(tmp_path / "checkpoints.jsonl")["step"] == 3
    for step in range(3, 8):
        if looks_between:
            run.poll()
        do_step(tmp_path, step)
        append_json(tmp_path / "evaluations.jsonl", evaluation(step))
    record_checkpoint(tmp_path, 8, "there")
    run.poll()
    new = [item for item in told.told if item not in before]
    assert sorted(new) == sorted([("step", 6), ("held", 6), ("step", 7), ("held", 7), ("checkpoint", 8)])
    assert len(set(told.told)) == len(told.told)


def test_a_continued_run_tells_what_is_new(tmp_path):
    record_event(tmp_path, "engine", "of the first start")
    record_checkpoint(tmp_path, 2, "there")
    for step in range(2):
        do_step(tmp_path, step)
    told = Recording()
    run = follower(tmp_path, told, resume_from=2)
    record_checkpoint(tmp_path, 2, "there")  # the learners that load it record it unless it is there
    append_json(tmp_path / "evaluations.jsonl", evaluation(2))
    do_step(tmp_path, 2)
    run.poll()
    assert told.told == [("held", 2), ("step", 2)]
    assert len(read_json_lines(tmp_path / "checkpoints.jsonl")) == 1


def test_only_what_was_added_is_read(tmp_path, monkeypatch):
    """Also of a long run: the cost of a look does not grow with the steps that were done."""
    for step in range(2000):
        do_step(tmp_path, step)
    parsed = []
    monkeypatch.setattr(follow, "parse_line", lambda line, name: parsed.append(line) or {"step": 2000})
    tail = JournalTail(tmp_path / "metrics.jsonl")
    do_step(tmp_path, 2000)
    tail.read()
    tail.read()
    assert len([line for line in parsed if line]) == 1


def test_a_line_that_is_being_written_is_told_when_it_is_whole(tmp_path):
    told = Recording()
    run = follower(tmp_path, told)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step"')
    run.poll()
    assert told.told == []
    with path.open("ab") as file:
        file.write(b": 0}\n")
    run.poll()
    assert told.told == [("step", 0)]


BAD_LINES = [b"{not json", b"5", b"null", b'{"kind": 3}', b"\xff\xfe", b"[" * 100_000, b'{"step": "x"}']


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: repr(line[:12]))
def test_a_bad_line_is_skipped_and_reported(tmp_path, capsys, line):
    told = Recording()
    run = follower(tmp_path, told)
    for name in ("metrics.jsonl", "events.jsonl", "evaluations.jsonl"):
        (tmp_path / name).write_bytes(line + b"\n")
    do_step(tmp_path, 0)
    record_event(tmp_path, "engine", "died")
    run.poll()
    reports = [message for kind, message in told.told if kind == "journal"]
    assert len(reports) == 3 and all("are not records" in message for message in reports)
    assert [item for item in told.told if item[0] != "journal"] == [("engine", "died"), ("step", 0)]
    assert [record["step"] for record in read_json_lines(tmp_path / "metrics.jsonl")] == [0]
    assert f"line 1 of {tmp_path / 'metrics.jsonl'} is not a record" in capsys.readouterr().err


def test_a_record_after_a_half_line_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "engi')  # the process died here
    record_event(tmp_path, "learners", "started again")
    assert [event["kind"] for event in read_json_lines(path)] == ["learners"]


def test_a_callback_that_raises_stops_the_run_and_the_others_are_told_all(tmp_path):
    bad, good = Recording(raises_at=1), Recording()
    run = follower(tmp_path, bad, good)
    with run:
        for step in range(4):
            do_step(tmp_path, step)
    steps = [item for item in good.told if item[0] == "step"]
    assert steps == [("step", step) for step in range(4)] and bad.told == steps[:2]
    assert run.stops == ["an error in a callback"]
    assert (
        "Recording raised ValueError: not this step"
        in read_json_lines(tmp_path / "events.jsonl")[0]["message"]
    )
    with pytest.raises(ValueError, match="not this step"):
        run.raise_failure()


def test_loggers_get_steps_and_evaluations(tmp_path):
    logged = []
    run = follower(tmp_path, *as_callbacks([], [lambda step, values: logged.append((step, values))]))
    with run:
        do_step(tmp_path, 0)
        append_json(tmp_path / "evaluations.jsonl", evaluation(1))
    run.raise_failure()
    assert [step for step, _ in logged] == [0, 1]
    assert logged[0][1]["loss"] == 0.5 and logged[1][1] == {"eval/held/avg@2": 50.0, "eval/held/entropy": 1.0}


@pytest.mark.parametrize(
    ("callbacks", "loggers", "message"),
    [
        ([print], [], "callbacks holds"),
        ([Recording], [], "callbacks holds"),
        ([], ["wandb"], "loggers holds 'wandb'"),
    ],
)
def test_what_is_no_callback_or_logger_is_refused(callbacks, loggers, message):
    with pytest.raises(UserError, match=message):
        as_callbacks(callbacks, loggers)


HOSTILE = [
    "[/red] and [bold]",
    "[/]",
    "\x1b[2J\x07bell",
    "\ud800 alone",
    "{0} {task.x}",
    "\u202egnp.exe",
    "$x_",
]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_of_a_run_breaks_the_display(tmp_path, text, terminal):
    shown = io.StringIO()
    progress = Progress(tmp_path / text.replace("/", "|"), steps=3, resume_from=0)
    progress.console = progress.bar.live.console = Console(file=shown, force_terminal=terminal, width=120)
    with progress, follower(tmp_path, progress) as run:
        record_event(tmp_path, "engine", text)
        append_json(tmp_path / "evaluations.jsonl", evaluation(0, text))
        do_step(tmp_path, 0)
    run.raise_failure()
    out = shown.getvalue()
    plain = "".join(character for character in text if character.isprintable() and character < "\u2000")
    assert plain in out.replace("\N{REPLACEMENT CHARACTER}", "") and "\x1b[2J" not in out
    out.encode()


def test_a_closed_terminal_does_not_stop_a_run(tmp_path):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    progress = Progress(tmp_path, steps=3, resume_from=0)
    progress.console = Output(file=Closed())
    progress.on_event({"kind": "engine", "message": "died"})
