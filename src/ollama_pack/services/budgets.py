"""Budgets at work: reserve before a chat, settle after it, say what is left.

A store that fails never keeps a chat from being answered. What could not be settled is tried again while the
process lives; `fault` says what is wrong, and the log says it once.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from http import HTTPStatus
from typing import Any, TypeVar
from uuid import uuid4

from ollama_pack.base.messages import Message, joined, message, said_by
from ollama_pack.base.time_limit import time_limit
from ollama_pack.budgets.period import local_time, period_at
from ollama_pack.budgets.store import RESERVATION_SECONDS, BudgetStore, Count, Limit
from ollama_pack.budgets.table import QUEUE_LAST, REFUSE, BudgetRow, BudgetTable, BudgetUser
from ollama_pack.engines.refusals import Refusal
from ollama_pack.errors import PackError

log = logging.getLogger(__name__)

T = TypeVar("T")

LOW_SHARE = 0.2  # of a budget: what is left is shown from here on
BUSY_RETRY_SECONDS = 15  # after which other chats of the user may have ended
_STEP_SECONDS = 1.0  # that a chat waits for the store
_REST_SECONDS = 5.0  # that a store is left alone after it failed
_RENEW_SECONDS = RESERVATION_SECONDS / 3
_MOST_UNSETTLED = 10_000
_LEARNING = 0.1  # weight of the last chat in what the next one is expected to use
_PERIOD_WORDS = {"day": message("today"), "week": message("this week"), "month": message("this month")}


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What a chat used.

    Attributes:
        seconds: of GPU time.
        tokens: of the prompts and the answers.
        requests: 1, or 0 where there was no answer.
    """

    seconds: float = 0.0
    tokens: float = 0.0
    requests: int = 1

    def steps(self, row: BudgetRow) -> int:
        """What counts for a row, in the steps that its counter counts in."""
        match row.measure:
            case "gpu":
                return math.ceil(max(0.0, self.seconds) * 1000)
            case "tokens":
                return math.ceil(max(0.0, self.tokens))
        return self.requests


@dataclass(frozen=True, slots=True)
class Reservation:
    """A chat that may begin.

    Attributes:
        token: names it in the store.
        user: who pays.
        rows: the budgets that hold for the user.
        last: a budget is used up: the chat comes behind all others.
        model: a budget is used up: this model answers instead; empty: the one that was asked for.
        low: a line for the user where little is left; empty: enough is.
    """

    token: str
    user: BudgetUser
    rows: tuple[BudgetRow, ...]
    last: bool = False
    model: str = ""
    low: str = ""


class Budgets:
    """The budgets of a site. Lives on one event loop."""

    def __init__(
        self,
        table: BudgetTable,
        store: BudgetStore,
        zone: tzinfo | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Ask the store nothing yet.

        Args:
            table: the rows.
            store: where the counters are.
            zone: the site's time zone; None: the server's.
            clock: seconds since the epoch.
        """
        self.table = table
        self.fault = ""
        self._store = store
        self._zone = zone
        self._clock = clock
        self._expected = BudgetUse(seconds=5.0, tokens=500)
        self._open: dict[str, Reservation] = {}
        self._unsettled: dict[str, tuple[Reservation, BudgetUse]] = {}
        self._rest_until = 0.0
        self._upkeep: asyncio.Task[None] | None = None
        self._closing = False

    async def reserve(self, user: BudgetUser, *, always: bool = False) -> Reservation | Refusal | None:
        """Let a chat begin, or not.

        Args:
            user: who asks.
            always: it may begin whatever is used up, and counts as no request: a background call of a chat
                that has begun.

        Returns:
            None: no budget holds for the user, or the store cannot be asked.
        """
        rows = self.table.rows_for(user)
        if not rows:
            return None
        now = self._clock()
        limits = self._limits(rows, user, now)
        expected = replace(self._expected, requests=0 if always else 1)
        amounts = [expected.steps(row) for row in rows]
        token = uuid4().hex
        answer = await self._ask(self._store.reserve(token, limits, amounts, now, always=always))
        if answer is None:
            return None
        reserved, counts = answer
        used_up = [
            (row, limit, count)
            for row, limit, count in zip(rows, limits, counts, strict=True)
            if limit.is_used_up(count)
        ]
        if not reserved:
            return self._refusal([each for each in used_up if each[0].then == REFUSE])
        model = next((row.then for row, *_ in used_up if row.then not in (REFUSE, QUEUE_LAST)), "")
        last = any(row.then == QUEUE_LAST for row, *_ in used_up)
        after = [replace(count, used=count.used + own) for count, own in zip(counts, amounts, strict=True)]
        low = "" if used_up else low_line(rows, after)
        reservation = Reservation(token, user, rows, last, model, low)
        self._open[token] = reservation
        self._keep_up()
        return reservation

    async def settle(self, reservation: Reservation, use: BudgetUse) -> None:
        """Count what a chat has used. Safe to call twice."""
        if self._open.pop(reservation.token, None) is None:
            return
        if use.requests:
            self._learn(use)
        await self._settle(reservation, use)

    async def usage(self, user: BudgetUser) -> list[dict[str, Any]]:
        """The budgets that hold for a user, and what is left of them, as plain values."""
        rows = self.table.rows_for(user)
        now = self._clock()
        limits = self._limits(rows, user, now)
        counts = (await self._ask(self._store.counts(limits, now)) if rows else ()) or (Count(),) * len(rows)
        return [
            self._report(row, limit, count) for row, limit, count in zip(rows, limits, counts, strict=True)
        ]

    async def everybody(self) -> list[dict[str, Any]]:
        """What each user and each group has used in the periods that are now, as plain values."""
        now = self._clock()
        found = []
        for stored in await self._ask(self._store.all_counts(now)) or ():
            measure, period, kind, name = stored.counter.split(" ", 3)
            if stored.start >= period_at(now, period, self._zone).start:  # type: ignore[arg-type] # as written
                scale = 1000 if measure == "gpu" else 1
                found.append(
                    {
                        "whose": name,
                        "shared": kind == "all",
                        "unit": "gpu-seconds" if measure == "gpu" else measure,
                        "period": period,
                        "used": stored.used / scale,
                        "under_way": stored.reserved / scale,
                    }
                )
        return found

    async def close(self) -> None:
        """Settle what has ended, and give the store back once no chat is under way."""
        self._closing = True
        if self._upkeep is None:
            await self._store.close()

    # --- the store ---

    async def _ask(self, step: Awaitable[T]) -> T | None:
        """The answer of the store; None: there is none, and chats go on without."""
        if time.monotonic() < self._rest_until:
            if asyncio.iscoroutine(step):
                step.close()
            return None
        try:
            async with time_limit(_STEP_SECONDS):
                answer = await step
        except (PackError, TimeoutError) as error:
            self._rest_until = time.monotonic() + _REST_SECONDS
            if not self.fault:
                late = message("it does not answer within {seconds:g} s", seconds=_STEP_SECONDS)
                why = said_by(error) or late
                log.warning("Budgets are not counted and do not hold until their store works again: %s", why)
                self.fault = why
            return None
        if self.fault:
            self.fault = ""
            log.warning("The store of the budgets works again: budgets hold")
        return answer

    async def _settle(self, reservation: Reservation, use: BudgetUse) -> bool:
        now = self._clock()
        limits = self._limits(reservation.rows, reservation.user, now)
        spent = [use.steps(row) for row in reservation.rows]
        if await self._ask(self._store.settle(reservation.token, limits, spent, now)) is not None:
            return True
        if len(self._unsettled) < _MOST_UNSETTLED:
            self._unsettled[reservation.token] = reservation, use
            self._keep_up()
        return False

    def _keep_up(self) -> None:
        if self._upkeep is None:
            self._upkeep = asyncio.get_running_loop().create_task(self._look_after())

    async def _look_after(self) -> None:
        """Renew what is under way and settle what could not be; ends when there is nothing of either."""
        renewed = time.monotonic()
        try:
            while self._open or self._unsettled:
                await asyncio.sleep(_REST_SECONDS)
                for token, (reservation, use) in list(self._unsettled.items()):
                    del self._unsettled[token]
                    if not await self._settle(reservation, use):
                        break
                if self._open and time.monotonic() - renewed >= _RENEW_SECONDS:
                    renewed = time.monotonic()
                    await self._ask(self._store.renew(list(self._open), self._clock()))
        finally:
            self._upkeep = None
        if self._closing:
            await self._store.close()

    # --- what they come to ---

    def _limits(self, rows: Sequence[BudgetRow], user: BudgetUser, now: float) -> tuple[Limit, ...]:
        return tuple(
            Limit(
                row.counter(user),
                row.amount,
                row.burst,
                period_at(now, row.period, self._zone),
                strict=row.then == REFUSE,
            )
            for row in rows
        )

    def _learn(self, use: BudgetUse) -> None:
        old = self._expected
        self._expected = replace(
            old,
            seconds=old.seconds + _LEARNING * (use.seconds - old.seconds),
            tokens=old.tokens + _LEARNING * (use.tokens - old.tokens),
        )

    def _refusal(self, used_up: Sequence[tuple[BudgetRow, Limit, Count]]) -> Refusal:
        def is_spent(limit: Limit, count: Count) -> bool:
            return limit.is_used_up(replace(count, reserved=0))

        row, limit, count = max(used_up, key=lambda each: (is_spent(*each[1:]), each[1].period.end))
        amount = _amount_words(row, row.amount)
        if not is_spent(limit, count):
            sentence = message(
                "Chats that are being answered may use up what is left of your budget: {amount} {period}. "
                "Try again when they are done.",
                amount=amount,
                period=_PERIOD_WORDS[row.period],
            )
            status = HTTPStatus.TOO_MANY_REQUESTS
            return Refusal(status, sentence, "budget_reserved", None, BUSY_RETRY_SECONDS)
        end = local_time(limit.period.end, self._zone)
        when = f"{end:%Y-%m-%d %H:%M}"
        if row.shared:
            sentence = message(
                "The budget shared by {subject} is used up: {amount} {period}. You can go on from {when}.",
                subject=row.subject.text,
                amount=amount,
                period=_PERIOD_WORDS[row.period],
                when=when,
            )
        else:
            sentence = message(
                "You have used up your budget: {amount} {period}. You can go on from {when}.",
                amount=amount,
                period=_PERIOD_WORDS[row.period],
                when=when,
            )
        wait = max(1, math.ceil(limit.period.end - self._clock()))
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, sentence, "budget_used_up", None, wait)

    def _report(self, row: BudgetRow, limit: Limit, count: Count) -> dict[str, Any]:
        return {
            "budget": row.text,
            "subject": row.subject.text,
            "unit": row.unit,
            "period": row.period,
            "shared": row.shared,
            "amount": row.in_unit(row.amount),
            "burst": row.in_unit(row.burst),
            "used": row.in_unit(count.used),
            "under_way": row.in_unit(count.reserved),
            "left": row.in_unit(row.amount + row.burst - count.used - count.reserved),
            "starts": local_time(limit.period.start, self._zone).isoformat(),
            "ends": local_time(limit.period.end, self._zone).isoformat(),
            "then": row.then,
        }


def low_line(rows: Sequence[BudgetRow], counts: Sequence[Count]) -> str:
    """A line about the budget of which the smallest part is left; empty: enough is left of all."""
    found = []
    for row, count in zip(rows, counts, strict=True):
        left = max(0, row.amount + row.burst - count.used - count.reserved)
        if left < LOW_SHARE * row.amount:
            found.append((left / row.amount, row, left))
    if not found:
        return ""
    _, row, left = min(found, key=lambda each: each[0])
    words = message(
        "{left} of {amount} left {period}",
        left=_number(row.in_unit(left)),
        amount=_amount_words(row, row.amount),
        period=_PERIOD_WORDS[row.period],
    )
    return joined([words, row.subject.text if row.shared else ""])


def _amount_words(row: BudgetRow, steps: int) -> Message:
    """Such as `120 GPU-minutes`."""
    number = _number(row.in_unit(steps))
    match row.unit:
        case "gpu-seconds":
            return message("{number} GPU-seconds", number=number)
        case "gpu-minutes":
            return message("{number} GPU-minutes", number=number)
        case "tokens":
            return message("{number} tokens", number=number)
    return message("{number} requests", number=number)


def _number(value: float) -> str:
    """A figure as people read it: `120`, `1.5`, `500,000`."""
    return f"{round(value, 1):,}".removesuffix(".0")
