"""Engines that raise or crash on a real cluster: one death is survived, repeated ones end the run."""

import pytest

from srft_ray import RunFailed, fit, make_config
from srft_ray.observe.journal import read_json_lines
from tests.conftest import base_config
from tests.ray.conftest import Run

pytestmark = pytest.mark.usefixtures("local_ray")
BROKEN = """
import os
import signal
from pathlib import Path

from srft_ray.sync.transport import ObjectStoreTransport

TRACE = Path(__file__).with_name("fetched")


class RaisesOnce(ObjectStoreTransport):
    def fetch(self, reload, offered):
        if not TRACE.exists():
            TRACE.touch()
            raise MemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().fetch(reload, offered)


class Raises(ObjectStoreTransport):
    def fetch(self, reload, offered):
        raise MemoryError(f"CUDA out of memory. Tried to allocate {os.getpid()} MiB")


class Illegal(ObjectStoreTransport):
    def fetch(self, reload, offered):
        os.kill(os.getpid(), signal.SIGILL)
"""


def config_of(tmp_path, tiny_model, transport):
    (tmp_path / "broken.py").write_text(BROKEN)
    keys = {"transport": f"{tmp_path / 'broken.py'}:{transport}"}
    return make_config(base_config(tmp_path, tiny_model, rollout=keys, trainer={"steps": 3}))


def engine_events(config):
    events = read_json_lines(config.run_dir / "events.jsonl")
    return [event["message"] for event in events if event["kind"] == "engine"]


@pytest.mark.full
def test_an_engine_that_raises_once_is_started_again(tmp_path, tiny_model):
    """`trainer.max_failures` is 0 here: it is no failure of the learners."""
    config = config_of(tmp_path, tiny_model, "RaisesOnce")
    Run(fit(config).run_dir).check_exactly_once(steps=3, groups_per_step=4)
    died = [
        message for message in engine_events(config) if "died: MemoryError: CUDA out of memory" in message
    ]
    assert len(died) == 1


@pytest.mark.full
@pytest.mark.parametrize(("transport", "cause"), [("Raises", "CUDA out of memory"), ("Illegal", "SIGILL")])
def test_deaths_that_repeat_end_the_run_with_their_cause(tmp_path, tiny_model, transport, cause):
    config = config_of(tmp_path, tiny_model, transport)
    with pytest.raises(
        RunFailed, match=f"died repeatedly at the same point .*{cause}.*would die again"
    ) as caught:
        fit(config)
    assert "\n" not in str(caught.value)
    died = [message for message in engine_events(config) if "died: " in message]
    assert 2 <= len(died) <= 3 and all(cause in message for message in died)
