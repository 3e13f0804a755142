"""`srft-ray scale --simulate`: the arithmetic of what is simulated, and of its findings."""

import json
from collections import Counter
from pathlib import Path

import pytest

from srft_ray.commands.cli import main
from srft_ray.commands.pipeline_model import Setting
from srft_ray.commands.scale import variant_of
from srft_ray.commands.simulation import report
from srft_ray.commands.simulation.calls import CountedCoordinator
from srft_ray.commands.simulation.command import Times, simulate, simulated_job
from srft_ray.commands.simulation.engines import Admitted
from srft_ray.commands.simulation.job import SimulatedJob, hosts
from srft_ray.commands.simulation.learners import Mailbox, StepRecord
from srft_ray.commands.simulation.load import calls_per_s
from srft_ray.commands.simulation.run import WARM_UP, Latencies, SimulatedRun, admission_delays
from srft_ray.commands.simulation.stream import StreamCost
from srft_ray.errors import UserError
from tests.unit.test_scale import config_of

LARGE = Setting(1000, 64)


def job_of(tmp_path: Path, setting: Setting = LARGE, steps: int = 3, groups: int = 8192) -> SimulatedJob:
    config = config_of(
        tmp_path,
        trainer={"groups_per_step": groups},
        algorithm={"name": "grpo"},
        rollout={"groups_per_task": 8},
    )
    return simulated_job(variant_of(config, setting, steps).resolved, setting, Times(7.0, 3.0, 2.0))


def test_the_size_of_the_goal_by_hand(tmp_path: Path):
    """8,192 groups in blocks of 8 for 1,000 engines and 64 learners."""
    job = job_of(tmp_path)
    assert (job.plan.block, job.plan.blocks_per_step, job.blocks) == (8, 1024, 3072)
    assert job.in_flight == 2 and job.stated_s == 5.0
    stale = job_of(tmp_path, Setting(1000, 64, staleness=1))
    assert stale.in_flight == 3 and stale.stated_s == 3.5


@pytest.mark.parametrize("setting", [LARGE, Setting(8, 4), Setting(3, 2, 1)], ids=str)
def test_every_block_is_sampled_once_and_trained_on_once(tmp_path: Path, setting: Setting):
    job = job_of(tmp_path, setting)
    sampled = Counter(block for engine in range(setting.engines) for block in job.of_engine(engine))
    trained = Counter(block for rank in range(setting.learners) for block in job.of_learner(rank))
    assert sampled == trained == Counter(range(job.blocks))
    # Each learner gets its share of each step, and the groups of a step are those of the plan.
    steps = Counter((job.place(block)[0].step, block % setting.learners) for block in range(job.blocks))
    assert set(steps.values()) == {job.plan.blocks_per_step // setting.learners}
    groups = [job.place(block)[1] + place for block in range(job.blocks) for place in range(job.plan.block)]
    assert groups == list(range(3 * 8192))


def test_the_slowest_block_of_each_step_takes_the_stated_time_and_none_a_tenth_less(tmp_path: Path):
    job = job_of(tmp_path)
    for first in (0, 1024):
        taken = sorted(job.sampling_s(block) for block in range(first, first + 1024))
        assert taken[-1] == 3.5 and 0.9 * 3.5 < taken[0] < 0.901 * 3.5 and len(set(taken)) == 1024


def test_engines_are_spread_over_processes():
    assert hosts(8) == [range(8)]
    assert hosts(1001) == [range(333), range(333, 667), range(667, 1001)]


def test_calls_of_steps_are_fewer_in_longer_steps_and_heartbeats_are_not():
    calls = {"admit": 100.0, "heartbeat": 200.0, "leave_requested": 10.0, "publish": 1.0}
    assert report.uncompressed_calls(calls, 5.0) == {
        "admit": 20.0,
        "heartbeat": 200.0,
        "leave_requested": 10.0,
        "publish": 0.2,
    }


def test_only_blocks_that_waited_for_a_version_tell_how_long_it_took():
    records = [StepRecord(step, step, step + 1.0, 0.1, 100.0 + step) for step in range(WARM_UP + 3)]
    version = WARM_UP + 1  # published at the end of the first step that counts
    at = 100.0 + WARM_UP
    admitted = [
        Admitted(version, version, asked_at=at - 3.0, admitted_at=at + 0.25),
        Admitted(version, version, asked_at=at + 1.0, admitted_at=at + 1.5),  # the version was there
        Admitted(1, 1, asked_at=0.0, admitted_at=500.0),  # of the warm-up
        Admitted(WARM_UP + 3, WARM_UP + 3, asked_at=0.0, admitted_at=500.0),  # after the last step
    ]
    assert admission_delays(records, admitted) == [pytest.approx(0.25)]


def test_calls_of_a_run_by_hand():
    """1,000 engines speak every 10 s. In a step of 10 s each of 125 nodes asks for admission, and for the
    weights; with staleness each of 1,024 blocks asks for admission."""
    assert calls_per_s(LARGE, 1024, 10.0, stall_timeout_s=300.0) == pytest.approx(100.0 + 25.0)
    ahead = Setting(1000, 64, staleness=1)
    assert calls_per_s(ahead, 1024, 10.0, stall_timeout_s=300.0) == pytest.approx(100.0 + 114.9)
    assert calls_per_s(Setting(8, 4), 4, 2.0, stall_timeout_s=300.0) == pytest.approx(8.0 + 1.0)


def test_percentiles_of_answers():
    latencies = Latencies()
    for number in range(200):
        latencies.add("admit", number / 1e3)
    assert latencies.figures() == {"admit": {"median": pytest.approx(99.5), "p99": pytest.approx(198.0)}}


def test_blocks_come_in_the_order_of_the_stream():
    mailbox = Mailbox()
    mailbox.put(3, {"group": ["d"]})
    mailbox.put(1, {"group": ["b"]})
    taken = mailbox.take(range(1, 5, 2))
    assert [block["group"] for block in taken] == [["b"], ["d"]]


class Handle:
    """A coordinator of which only a method exists."""

    class heartbeat:
        @staticmethod
        def remote(value: int) -> int:
            return 2 * value


def test_calls_are_counted_by_name():
    counted = CountedCoordinator(Handle())
    assert [counted.heartbeat.remote(value) for value in (1, 2)] == [2, 4]
    assert counted.counted() == Counter(heartbeat=2)


def test_findings_as_text_json_and_pictures(tmp_path: Path):
    job = job_of(tmp_path)
    calls = {"admit": 200.0, "heartbeat": 200.0}
    latencies = {"admit": {"median": 1.0, "p99": 9.0}}
    run = SimulatedRun(job, 5.25, 0.25, 0.4, calls, latencies, [100.0] * 3)
    text = report.write([run], 2.0, [StreamCost(32, 0.004, 0.003)], tmp_path)
    assert "| 1000 | 64 | 0 | 1024 | 5.00 | 5.250 | 0.250 s | 400 | 40.0% | 1.0 (9.0) |" in text
    assert "1000 engines 300 calls/s, 30.0% of a core, overhead 2.5%" in text
    assert "A step of 1,024 blocks would take Ray Data 4.1 s" in text and "holds 19 steps" in text
    assert (tmp_path / "simulated.md").read_text() == text + "\n"
    assert (tmp_path / "simulated.png").stat().st_size > 1000 < (tmp_path / "simulated.svg").stat().st_size
    found = json.loads((tmp_path / "simulated.json").read_text())
    assert found["simulated"][0]["uncompressed"]["core_share"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("steps", "times", "named"),
    [
        (WARM_UP + 1, Times(7.0, 3.0), "--steps"),
        (9, Times(-1.0, 3.0), "--generation-seconds"),
        (9, Times(1.0, 1.0, 0.5), "--compress"),
    ],
)
def test_what_cannot_be_simulated_is_refused(tmp_path: Path, steps: int, times: Times, named: str):
    with pytest.raises(UserError, match=named):
        simulate(config_of(tmp_path), [8], [2], None, steps, times)


def test_groups_that_learners_cannot_share_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.yaml"
    path.write_text(
        json.dumps({"model": {"path": "m"}, "data": {"path": "d"}, "run": {"dir": str(tmp_path)}})
    )
    words = ["scale", str(path), "--simulate", "--engines", "8", "--learners", "3", "algorithm.name=grpo"]
    assert main(words) == 2
    assert "not divisible by 3 learners" in capsys.readouterr().err
