"""Chats that are under way and their budgets: what each has used so far, by whoever knows it best."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_pack.base.redis import redis_client
from ollama_pack.budgets.period import site_zone
from ollama_pack.budgets.store import BudgetStore
from ollama_pack.budgets.store_redis import RedisBudgetStore
from ollama_pack.budgets.store_sqlite import SqliteBudgetStore
from ollama_pack.budgets.table import parse_budgets
from ollama_pack.engines.body import object_at
from ollama_pack.services.budgets import Budgets, BudgetUse, Reservation

BUDGET_STATE = "ollama_pack_budget"  # the filter's key in `__metadata__`, where it leaves the ticket
_NANO = 1e-9


class BudgetTicket(dict[str, Any]):
    """What `__metadata__` holds of a chat: when the last reference to it goes, the chat has ended."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True)
class ChatBudget:
    """One chat that counts against budgets.

    Attributes:
        reservation: what it reserved.
        budgets: where it counts.
        began: when, in seconds of the monotonic clock.
        is_request: it counts as a request; a background call of a chat does not.
        is_routed: the router answers it, and says what each answer took.
        served: seconds of GPU time and tokens of each answer, as the router knows them.
        figures: seconds and tokens of each answer, as the engine reported them.
        first_at: when the answer began that has no figures yet; None: none has.
        pieces: chunks of that answer.
        answered: an answer came.
        heard_at: when something was heard of it last.
        ended: id of the answer whose figures came last.
        ended_began: when that answer began.
        round: id of the answer that has no figures yet.
        is_finished: it has said that it is over; figures may come yet.
    """

    reservation: Reservation
    budgets: Budgets
    began: float
    is_request: bool = True
    is_routed: bool = False
    served: list[tuple[float, float]] = field(default_factory=list)
    figures: list[tuple[float, float]] = field(default_factory=list)
    first_at: float | None = None
    pieces: int = 0
    answered: bool = False
    heard_at: float = 0.0
    ended: str = ""
    ended_began: float = 0.0
    round: str = ""
    is_finished: bool = False

    def take(self, chunk: Mapping[str, Any], now: float) -> None:
        """Look at a chunk of a streamed answer; an error or a source is no part of one."""
        if chunk.get("error") or not (chunk.get("choices") or chunk.get("usage")):
            return
        before, self.heard_at = self.heard_at, now
        self.answered = True
        about = chunk.get("ollama_pack")
        if isinstance(about, Mapping) and about.get("cache"):
            self.take_kept()
            return
        figures = {**object_at(chunk.get("usage")), **object_at(chunk.get("timings"))}
        name = str(chunk.get("id") or "")
        goes_on = bool(name) and name == self.ended
        if figures:
            if goes_on:  # some engines send what it comes to so far with each chunk
                self.figures.pop()
                self.first_at = self.ended_began
            self._end_answer(figures, now)
            self.ended = name
        elif not goes_on:
            if self.is_finished and name != self.round:  # tools have run since
                self._end_answer({}, before)
            self.first_at = now if self.first_at is None else self.first_at
            self.round, self.is_finished = name, self.is_finished or _is_over(chunk)
        self.pieces += self.first_at is not None

    def take_whole(self, usage: Mapping[str, Any], now: float) -> None:
        """An answer has ended, with these figures or none."""
        self._end_answer(usage, now if self.first_at is None else self.heard_at)

    def _end_answer(self, usage: Mapping[str, Any], ended: float) -> None:
        began = self.began if self.first_at is None else self.first_at
        self.figures.append(_figures_of(usage, ended - began, self.pieces))
        self.answered, self.first_at, self.pieces, self.is_finished = True, None, 0, False
        self.ended_began = began

    def take_kept(self) -> None:
        """The answer comes from the response cache: nothing was generated for it."""
        self.figures, self.ended = [(0.0, 0.0)], ""
        self.answered, self.first_at, self.pieces, self.is_finished = True, None, 0, False

    def use(self, now: float, *, left: bool = False) -> BudgetUse:
        """What the chat has used.

        Args:
            now: seconds of the monotonic clock.
            left: its user has left while it was answered.
        """
        if self.served:
            return _sum(self.served, requests=int(self.is_request))
        found = list(self.figures)
        if self.first_at is not None:
            # Nobody may say that an answer without figures is over: then its last word was the end.
            found.append(((now if left else self.heard_at) - self.first_at, float(self.pieces)))
        elif left and not found and not self.is_routed:  # at the router it has only waited
            found.append((now - self.began, 0.0))
        if found:
            return _sum(found, requests=int(self.is_request))
        return BudgetUse(requests=int(self.answered))


def _is_over(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk says that its answer ends."""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(object_at(one).get("finish_reason") for one in choices)


def _sum(found: list[tuple[float, float]], *, requests: int) -> BudgetUse:
    return BudgetUse(sum(seconds for seconds, _ in found), sum(tokens for _, tokens in found), requests)


def _figures_of(usage: Mapping[str, Any], elapsed: float, pieces: int) -> tuple[float, float]:
    """Seconds of service and tokens: as Ollama or llama.cpp report them, else time that passed and chunks."""
    tokens = _figure(usage, "total_tokens") or sum(
        _figure(usage, one) or _figure(usage, other)
        for one, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    tokens = tokens or sum(_figure(usage, name) for name in ("cache_n", "prompt_n", "predicted_n"))
    seconds = _NANO * (_figure(usage, "prompt_eval_duration") + _figure(usage, "eval_duration"))
    seconds = seconds or (_figure(usage, "prompt_ms") + _figure(usage, "predicted_ms")) / 1000
    return seconds or max(0.0, elapsed), tokens or pieces


def _figure(figures: Mapping[str, Any], name: str) -> float:
    value = figures.get(name)
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0
    )


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What budgets are made of.

    Attributes:
        rows: the table.
        time_zone: of the site; empty: the server's.
        url: of Redis; empty: the file at `path`.
        path: of SQLite's file.
    """

    rows: str
    time_zone: str
    url: str = field(repr=False)
    path: Path


class BudgetKeeper:
    """Has the budgets that the valves ask for."""

    def __init__(self) -> None:
        self._made_of: BudgetSettings | None = None
        self._budgets: Budgets | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def budgets(self, settings: BudgetSettings) -> Budgets:
        """The budgets for these settings; others once they change. Nothing is opened until it is used."""
        if self._budgets is None or self._made_of != settings:
            self.retire()
            table = parse_budgets(settings.rows)
            self._budgets = Budgets(table, _store_of(settings), site_zone(settings.time_zone))
            self._made_of = settings
        return self._budgets

    def retire(self) -> None:
        """Give the store back once the chats under way have been counted."""
        if self._budgets is not None:
            task = asyncio.get_running_loop().create_task(self._budgets.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._budgets = None


def _store_of(settings: BudgetSettings) -> BudgetStore:
    return RedisBudgetStore(redis_client(settings.url)) if settings.url else SqliteBudgetStore(settings.path)
