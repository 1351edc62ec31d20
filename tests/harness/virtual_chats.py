"""Chats as people have them in Open WebUI, played in virtual time against whatever brings calls to nodes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from ollama_pack.routing.decide.view import PromptBlock
from ollama_pack.routing.plan.virtual_fleet import Spent, Timeline, Work

USERS = 40


@dataclass(frozen=True)
class Turn:
    """What a person says, in tokens, what comes back, and how long it is thought about, in seconds."""

    said: int
    answer: int
    pause: float


@dataclass(frozen=True)
class Chat:
    number: int
    begins: float
    model: str
    turns: tuple[Turn, ...]
    user: str


SYSTEM, TITLE_PROMPT, TITLE = 200, 200, 10  # tokens


def trace(rate: float, shares: Sequence[float], seconds: float, seed: int) -> list[Chat]:
    """Chats of one to five turns; lengths are log-normal, pauses exponential, arrivals Poisson.

    Args:
        rate: new chats a second.
        shares: of the models among the chats.
        seconds: for so long chats begin.
        seed: equal seeds give equal chats.
    """
    dice = Random(seed)  # noqa: S311 - seeded on purpose
    chats: list[Chat] = []
    begins = dice.expovariate(rate)
    while begins < seconds:
        model = f"m{dice.choices(range(len(shares)), shares)[0]}"
        turns = tuple(_turn(dice, first=number == 0) for number in range(dice.randint(1, 5)))
        chats.append(Chat(len(chats), begins, model, turns, f"u{len(chats) % USERS}"))
        begins += dice.expovariate(rate)
    return chats


def _turn(dice: Random, *, first: bool) -> Turn:
    said = max(8, round(dice.lognormvariate(math.log(150 if first else 80), 0.8)))
    answer = max(5, round(dice.lognormvariate(math.log(80), 0.7)))
    return Turn(said, answer, dice.expovariate(1 / 20))


@dataclass(frozen=True)
class Call:
    """One request: what the node has to do, and for whom."""

    work: Work
    user: str
    chat: str
    background: bool


Done = Callable[[Spent], None]


PIECE = 100  # tokens of a long message's blocks, as `prompt_blocks` makes them


def pieces(chain: int, before: tuple[PromptBlock, ...], tokens: int) -> tuple[PromptBlock, ...]:
    """A prompt with one message more, whose chains follow from its number."""
    begins = before[-1].upto if before else 0
    ends = [*range(PIECE, tokens - PIECE // 2, PIECE), tokens]
    return (*before, *(PromptBlock(1000 * chain + at, begins + end) for at, end in enumerate(ends)))


class Router(Protocol):
    """Brings a call to a node, and says when its first token and its end come."""

    def send(self, call: Call, first_token: Callable[[], None], done: Done) -> None: ...


@dataclass
class Measured:
    """What came of one run: times to first token of people's requests, by user too; tokens; loads."""

    waits: list[float] = field(default_factory=list)
    by_user: dict[str, list[float]] = field(default_factory=dict)
    title_waits: list[float] = field(default_factory=list)
    tokens: int = 0
    reused: int = 0
    requests: int = 0
    loads: int = 0


class Driver:
    """Plays the chats against a router. A turn begins when the one before has been read."""

    def __init__(self, clock: Timeline, router: Router) -> None:
        self.measured = Measured()
        self._clock = clock
        self._router = router

    def play(self, chats: Sequence[Chat]) -> None:
        for chat in chats:
            start = pieces(-1 - int(chat.model[1:]), (), SYSTEM)
            self._clock.at(chat.begins, lambda chat=chat, start=start: self._say(chat, 0, start))  # type: ignore[misc] # mypy cannot see a lambda's defaults

    def _say(self, chat: Chat, number: int, before: tuple[PromptBlock, ...]) -> None:
        turn = chat.turns[number]
        chain = chat.number * 100 + 2 * number
        blocks = pieces(chain, before, turn.said)
        answer = PromptBlock(chain + 1, blocks[-1].upto + turn.answer, answer=True)
        work = Work(f"{chat.number}.{number}", chat.model, blocks, turn.answer, answer)

        def then() -> None:
            if number == 0:
                self._ask_title(chat, answer.upto)
            if number + 1 < len(chat.turns):
                self._clock.after(turn.pause, lambda: self._say(chat, number + 1, (*blocks, answer)))

        self._send(Call(work, chat.user, str(chat.number), background=False), then)

    def _ask_title(self, chat: Chat, tokens: int) -> None:
        template = pieces(-100, (), TITLE_PROMPT)
        blocks = pieces(chat.number * 100 + 99, template, tokens - SYSTEM)
        work = Work(f"{chat.number}.title", chat.model, blocks, TITLE)
        self._send(Call(work, chat.user, str(chat.number), background=True), lambda: None)

    def _send(self, call: Call, then: Callable[[], None]) -> None:
        came = self._clock.now
        measured = self.measured
        measured.requests += 1

        def first_token() -> None:
            waited = self._clock.now - came
            if call.background:
                measured.title_waits.append(waited)
            else:
                measured.waits.append(waited)
                measured.by_user.setdefault(call.user, []).append(waited)

        def done(spent: Spent) -> None:
            measured.tokens += spent.prompt_count
            measured.reused += spent.hit
            then()

        self._router.send(call, first_token, done)
