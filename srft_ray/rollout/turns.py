"""Responses of several turns: what the policy writes, and what an environment says in between."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from srft_ray.rollout.generation import Generation, Sampling
from srft_ray.rollout.judges import Judge
from srft_ray.rollout.requests import Request, seed_of
from srft_ray.rollout.vllm_engine import Engine
from srft_ray.verify import Item, Verdict
from srft_ray.verify.environment import reply_of


@dataclass
class Conversation:
    """A response in the making. `ids` and what belongs to them leave the request's prefix out."""

    request: Request
    text: str  # the prefix included
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    observed: list[tuple[int, int]] = field(default_factory=list)
    loads: list[tuple[int, int]] = field(default_factory=list)
    finish_reason: str = ""

    @property
    def used(self) -> int:
        """Tokens of the response so far."""
        return len(self.request.prefix) + len(self.ids)

    def seed(self, turn: int) -> int:
        """That of the request for the first turn, and one of its own for each other turn."""
        return seed_of(f"{self.request.seed}/{turn}") if turn else self.request.seed

    def write(self, generation: Generation) -> None:
        """Adds what the policy wrote in a turn."""
        self.loads += [(load, len(self.ids) + first) for load, first in generation.loads]
        self.ids += generation.ids
        self.logprobs += generation.logprobs
        self.text += generation.text
        self.finish_reason = generation.finish_reason

    def observe(self, text: str, ids: Sequence[int]) -> None:
        """Adds what the environment said. It has no log-probs, and nothing is computed of it."""
        if ids:
            self.observed.append((len(self.ids), len(self.ids) + len(ids)))
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.text += text

    def generation(self) -> Generation:
        """The whole response, as if it were of one turn."""
        return Generation(
            self.ids,
            self.logprobs,
            self.text,
            self.finish_reason,
            observed=tuple(self.observed),
            loads=tuple(self.loads),
        )


def converse(
    engine: Engine, environment: Judge, requests: Sequence[Request], sampling: Sampling, max_turns: int
) -> Iterator[tuple[int, Generation]]:
    """Samples responses of up to `max_turns` turns; yields (number of the request, response) as they end.

    A turn that ended with one of `sampling.stop` is answered by the environment, and the response goes on
    behind the answer. All responses begin a turn together, so that what shares a batch, and with it every
    bit of a response, does not depend on how fast the environment is. `finish_reason` is `turns` after the
    last turn, `length` where an answer leaves no room for another token, and `error` if the environment
    failed.
    """
    conversations = [Conversation(request, _prefix_text(engine, request)) for request in requests]
    active = list(range(len(conversations)))
    for turn in range(max_turns):
        asked: dict[int, Future[Verdict]] = {}
        for number, generation in _sample_turn(
            engine, [conversations[each] for each in active], turn, sampling
        ):
            place = active[number]
            conversation = conversations[place]
            conversation.write(generation)
            if generation.stop is None:
                yield place, conversation.generation()
            else:
                asked[place] = environment.submit(_question(conversation))
        active = []
        for place in sorted(asked):
            conversation, verdict = conversations[place], asked[place].result()
            if _goes_on(conversation, verdict, engine, sampling, turn + 1 == max_turns):
                active.append(place)
            else:
                yield place, conversation.generation()
        if not active:
            return


def _sample_turn(
    engine: Engine, conversations: Sequence[Conversation], turn: int, sampling: Sampling
) -> Iterator[tuple[int, Generation]]:
    prompts = [[*conversation.request.prompt_ids, *conversation.ids] for conversation in conversations]
    seeds = [conversation.seed(turn) for conversation in conversations]
    return engine.stream(prompts, seeds, sampling, [conversation.used for conversation in conversations])


def _goes_on(
    conversation: Conversation, verdict: Verdict, engine: Engine, sampling: Sampling, is_last: bool
) -> bool:
    """Adds what the environment said if another turn follows; else says why the response ends."""
    try:
        text = reply_of(verdict)
    except ValueError:
        conversation.finish_reason = "error"
        return False
    if text is None:
        return False  # with the reason of the turn, `stop`
    if is_last:
        conversation.finish_reason = "turns"
        return False
    ids = engine.encode(text)
    if conversation.used + len(ids) >= sampling.max_new_tokens:
        conversation.finish_reason = "length"
        return False
    conversation.observe(text, ids)
    return True


def _question(conversation: Conversation) -> Item:
    group = conversation.request.group
    return Item(conversation.text, group.reference, group.metadata)


def _prefix_text(engine: Engine, request: Request) -> str:
    return engine.text(request.prefix) if request.prefix else ""
