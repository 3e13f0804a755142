"""The world "strings": chains of operations on four letters, in bands of prompts.

A prompt such as `qt:beaf` names operations and a state. Each step of a worked response writes an operation
with the state after it, and the answer follows the equals sign: `qfaeb tafeb =afeb`. A direct response is the
answer alone. The bands differ in what the base model can do.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

LETTERS = "abcdef"
LENGTH = 4


def _shifted(text: str) -> str:
    return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in text)


KNOWN: dict[str, Callable[[str], str]] = {
    "q": lambda s: s[::-1],
    "r": lambda s: s[1:] + s[:1],
    "s": lambda s: s[-1:] + s[:-1],
    "t": lambda s: s[1] + s[0] + s[2:],
    "u": lambda s: s[:2] + s[3] + s[2],
    "v": lambda s: s[3] + s[1:3] + s[0],
    "w": _shifted,
    "x": lambda s: s[0] + s[0] + s[1:3],
}
# No text of the base model's training has them, and none of the others does what they do.
MISSING: dict[str, Callable[[str], str]] = {
    "y": lambda s: 3 * s[0] + s[3],
    "z": lambda s: s[0] + 3 * s[3],
}
OPERATIONS = KNOWN | MISSING


@dataclass(frozen=True)
class Band:
    """Prompts of one kind.

    Attributes:
        depths: numbers of operations.
        missing: whether one of the operations is missing from the base model's training.
    """

    depths: tuple[int, ...]
    missing: bool = False


BANDS = {
    "habit": Band((2, 3)),
    "edge": Band((4, 5)),
    "missing": Band((2, 3), missing=True),
    "longer": Band((6, 7)),
}
RETAINED = "retained"  # another task of the base model's training: the sum of two states, letter by letter
ALL_BANDS = (*BANDS, RETAINED)


@dataclass(frozen=True)
class Problem:
    """A prompt with its right answer and, of a chain, its right states, one after each operation."""

    prompt: str
    answer: str
    operations: str = ""
    states: tuple[str, ...] = ()


def random_state(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=LENGTH))


def chain(operations: str, state: str) -> Problem:
    """The problem that applies the operations from left to right."""
    states = []
    now = state
    for operation in operations:
        now = OPERATIONS[operation](now)
        states.append(now)
    return Problem(f"{operations}:{state}", now, operations, tuple(states))


def draw_chain(band: Band, rng: random.Random) -> Problem:
    while True:
        operations = rng.choices(list(KNOWN), k=rng.choice(band.depths))
        if band.missing:
            operations[rng.randrange(len(operations))] = rng.choice(list(MISSING))
        # With few different letters many wrong steps end at the right answer.
        state = "".join(rng.sample(LETTERS, LENGTH)) if band.missing else random_state(rng)
        problem = chain("".join(operations), state)
        if not (band.missing and solved_by_known(problem)):
            return problem


def solved_by_known(problem: Problem) -> bool:
    """Whether a known operation in the place of a missing one gives the right answer, as with few letters."""
    state = problem.prompt.partition(":")[2]
    missing = [place for place, operation in enumerate(problem.operations) if operation in MISSING]
    others = (
        problem.operations[:place] + known + problem.operations[place + 1 :]
        for place in missing
        for known in ("", *KNOWN)
    )
    return any(chain(operations, state).answer == problem.answer for operations in others)


def draw_sum(rng: random.Random) -> Problem:
    """The sum of two states: each letter is moved on by the other's place in the alphabet."""
    first = random_state(rng)
    second = random_state(rng)
    places = [LETTERS.index(a) + LETTERS.index(b) for a, b in zip(first, second, strict=True)]
    return Problem(f"{first}+{second}", "".join(LETTERS[place % len(LETTERS)] for place in places))


def draw(band: str, rng: random.Random) -> Problem:
    return draw_sum(rng) if band == RETAINED else draw_chain(BANDS[band], rng)


def direct(answer: str) -> str:
    return f"={answer}"


def guess(rng: random.Random) -> str:
    """A direct response that is one letter short, so that it is never right by chance."""
    return direct("".join(rng.choices(LETTERS, k=LENGTH - 1)))


def worked(operations: str, states: Sequence[str]) -> str:
    """A response with all steps. Its answer is its last state."""
    steps = "".join(f"{operation}{state} " for operation, state in zip(operations, states, strict=True))
    return steps + direct(states[-1])


def with_wrong_step(problem: Problem, rng: random.Random) -> str:
    """A worked response with one wrong step that it goes on from, so that its answer is wrong."""
    while True:
        states = list(problem.states)
        wrong = rng.randrange(len(states))
        states[wrong] = changed(states[wrong], rng)
        for index in range(wrong + 1, len(states)):
            states[index] = OPERATIONS[problem.operations[index]](states[index - 1])
        # A later operation may drop the letter that is wrong.
        if states[-1] != problem.answer:
            return worked(problem.operations, states)


def changed(state: str, rng: random.Random) -> str:
    """The state with another letter at one place."""
    place = rng.randrange(LENGTH)
    letter = rng.choice([other for other in LETTERS if other != state[place]])
    return state[:place] + letter + state[place + 1 :]


def distinct(band: str, rng: random.Random, taken: set[str]) -> Iterator[Problem]:
    """Problems of a band, each prompt once; `taken` has the prompts that are used and is added to."""
    while True:
        problem = draw(band, rng)
        if problem.prompt not in taken:
            taken.add(problem.prompt)
            yield problem
