"""Responses of several turns, with an engine that writes a given text in each turn."""

import pytest

from algorithms import Group
from srft_ray.rollout.generation import Generation, Sampling
from srft_ray.rollout.judges import Judge
from srft_ray.rollout.requests import Request
from srft_ray.rollout.turns import converse
from srft_ray.verify import Item, Verdict, VerifierPool
from srft_ray.verify.environment import as_verifier, reply_of

STOP = "</q>"


class Engine:
    """Characters are tokens. A response writes the next text of its script in each turn."""

    def __init__(self, scripts):
        self.scripts = [list(texts) for texts in scripts]
        self.batches = []

    def stream(self, prompts, seeds, sampling, used):
        self.batches.append((prompts, seeds, used))
        active = [script for script in self.scripts if script]
        # They end in another order than they began.
        for number in reversed(range(len(prompts))):
            text = active[number].pop(0)
            ends = text.endswith(STOP)
            yield (
                number,
                Generation(self.encode(text), [-1.0] * len(text), text, "stop", STOP if ends else None),
            )

    def encode(self, text):
        return [ord(character) for character in text]

    def text(self, ids):
        return "".join(map(chr, ids))


class Pool:
    """A VerifierPool that calls the environment in this process."""

    def __init__(self, function):
        self.verifier = as_verifier(function)
        self.asked = []

    def verify(self, items):
        self.asked += [item.response for item in items]
        return [self._verdict(item) for item in items]

    def _verdict(self, item):
        try:
            return self.verifier(item.response, item.reference, item.metadata)
        except Exception as error:
            return Verdict("error", 0.0, None, str(error))


def talk(scripts, function, max_turns=4, max_new_tokens=100, prefix=()):
    """The responses by number, the engine and what the environment was asked."""
    engine = Engine(scripts)
    pool = Pool(function)
    group = Group(0, 0, "p", [1, 2], "reference", {"key": 3})
    requests = [Request(group, sample, 100 + sample, prefix) for sample in range(len(scripts))]
    sampling = Sampling(1.0, 1.0, max_new_tokens, (STOP,))
    found = dict(converse(engine, Judge(pool), requests, sampling, max_turns))
    return found, engine, pool.asked, requests


def test_an_answer_is_added_and_the_response_goes_on():
    found, engine, asked, _ = talk([[f"ask{STOP}", "so 4"]], lambda response, *_: "<4>")
    generation = found[0]
    assert asked == [f"ask{STOP}"]
    assert generation.text == f"ask{STOP}<4>so 4"
    assert generation.ids == [ord(character) for character in generation.text]
    assert generation.observed == ((7, 10),)
    assert generation.logprobs == [-1.0] * 7 + [0.0] * 3 + [-1.0] * 4
    assert generation.finish_reason == "stop"
    prompts, seeds, used = engine.batches[1]
    assert prompts == [[1, 2, *generation.ids[:10]]] and used == [10]
    assert engine.batches[0][1] == [100] and seeds != [100]


def test_the_rollout_names_what_the_environment_said():
    prefix = tuple(map(ord, "ab"))
    found, engine, asked, requests = talk([[f"c{STOP}", "d"]], lambda *_: "E", prefix=prefix)
    rollout = requests[0].completion(found[0], found[0].text)
    assert asked == [f"abc{STOP}"]
    assert rollout.text == f"abc{STOP}Ed" and rollout.prefix == 2
    assert rollout.observed == [(7, 8)] and rollout.ids[7] == ord("E")
    assert len(rollout.logprobs) == len(rollout.ids)
    assert rollout.written == len(rollout.ids) - 1
    assert engine.batches[0][2] == [2] and engine.batches[1][2] == [8]


def test_what_ends_a_response():
    def environment(response, reference, metadata):
        assert (reference, metadata) == ("reference", {"key": 3})
        if response.endswith(f"fail{STOP}"):
            raise RuntimeError("no tool")
        return None if response.endswith(f"end{STOP}") else "x" * (90 if "long" in response else 1)

    scripts = [
        ["plain"],
        [f"end{STOP}"],
        [f"fail{STOP}"],
        [f"long{STOP}"],
        [f"a{STOP}", f"b{STOP}", f"c{STOP}"],
    ]
    found, engine, _, _ = talk(scripts, environment, max_turns=3, max_new_tokens=95)
    assert {number: one.finish_reason for number, one in found.items()} == {
        0: "stop",
        1: "stop",
        2: "error",
        3: "length",
        4: "turns",
    }
    assert found[3].text == f"long{STOP}" and not found[3].observed
    assert found[4].text == f"a{STOP}xb{STOP}xc{STOP}"
    # Those that go on begin a turn together, in their order.
    assert [len(prompts) for prompts, _, _ in engine.batches] == [5, 1, 1]


def test_turns_have_seeds_of_their_own_and_the_same_ones_again():
    scripts = [[f"a{STOP}", f"b{STOP}", "c"]] * 2
    batches = [talk(scripts, lambda *_: "x")[1].batches for _ in range(2)]
    seeds = [[seeds for _, seeds, _ in found] for found in batches]
    assert seeds[0] == seeds[1]
    assert len({seed for turn in seeds[0] for seed in turn}) == 6


@pytest.mark.parametrize("text", ["line\none\t\x1b[0m ", "", "\ud800", '"\\'])
def test_a_text_arrives_as_the_environment_said_it(tmp_path, text):
    file = tmp_path / "tool.py"
    file.write_text(f"def reply(response, reference, metadata):\n    return {text!r} + response\n")
    pool = VerifierPool("environment", f"{file}:reply")
    try:
        [verdict] = pool.verify([Item("r", "", {})])
        assert reply_of(verdict) == text.replace("\ud800", "?") + "r"
    finally:
        pool.close()


def test_an_environment_that_fails_is_told_from_one_that_ends(tmp_path):
    file = tmp_path / "tool.py"
    file.write_text(
        "def reply(response, reference, metadata):\n"
        "    if response == 'end': return None\n"
        "    if response == 'number': return 3\n"
        "    if response == 'hang':\n"
        "        while True: pass\n"
        "    return 'x' * 20_000\n"
    )
    pool = VerifierPool("environment", f"{file}:reply", timeout_s=0.5)
    try:
        names = ["end", "number", "hang", "long"]
        verdicts = dict(zip(names, pool.verify([Item(name, "", {}) for name in names]), strict=True))
    finally:
        pool.close()
    assert reply_of(verdicts["end"]) is None
    for name in names[1:]:
        with pytest.raises(ValueError):
            reply_of(verdicts[name])
