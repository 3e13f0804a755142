"""Files of a checkpoint that a thread writes."""

import threading

import pytest
import torch

from srft_ray.train.checkpoint_share import BackgroundShare

NOTHING: dict[str, torch.Tensor] = {}


class Gate:
    """Writes that wait until they may go on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        self.written: list[str] = []

    def write(self, name: str) -> dict[str, dict[str, int]]:
        self.begun.set()
        assert self.open.wait(30)
        self.written.append(name)
        return {name: {"bytes": 1}}


def test_files_are_written_in_order_while_the_caller_goes_on():
    gate, share = Gate(), BackgroundShare()
    for name in "abc":
        share.add(NOTHING, lambda name=name: gate.write(name))
    assert not share.is_written(0.01) and gate.written == []
    gate.open.set()
    assert share.is_written(30) and gate.written == ["a", "b", "c"]
    assert list(share.result().entries) == ["a", "b", "c"] and share.result().error is None


def test_what_the_storage_refuses_is_said_and_nothing_more_is_written():
    def refuse() -> dict[str, dict[str, int]]:
        raise OSError("No space left on device")

    gate, share = Gate(), BackgroundShare()
    gate.open.set()
    share.add(NOTHING, refuse)
    share.add(NOTHING, lambda: gate.write("b"))
    assert share.is_written(30)
    assert share.result().error == "No space left on device" and gate.written == []


def test_a_tensor_that_is_not_finite_is_named():
    gate, share = Gate(), BackgroundShare()
    gate.open.set()
    share.add({"a|weight": torch.tensor([1.0, float("nan")])}, lambda: gate.write("a"))
    assert share.is_written(30) and "a|weight" in (share.result().nonfinite or "") and gate.written == []


def test_a_bug_in_the_thread_is_not_lost():
    share = BackgroundShare()
    share.add(NOTHING, lambda: {}["missing"])
    assert share.is_written(30)
    with pytest.raises(KeyError, match="missing"):
        share.result()


def test_nothing_is_written_after_the_learner_has_left():
    gate, share = Gate(), BackgroundShare()
    for name in "ab":
        share.add(NOTHING, lambda name=name: gate.write(name))
    assert gate.begun.wait(30)
    threading.Timer(0.2, gate.open.set).start()
    share.cancel(30)
    assert gate.written == ["a"], "the file that had been begun is whole, and no other is begun"


def test_a_hanging_storage_does_not_keep_the_learner():
    gate, share = Gate(), BackgroundShare()
    share.add(NOTHING, lambda: gate.write("a"))
    share.cancel(0.05)
    assert gate.written == []
    gate.open.set()
