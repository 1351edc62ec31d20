"""
title: Usage budgets
author: Open WebUI Ollama Pack
author_url: {repository}
description: Limits what each user and each group may use in a day, a week or a month.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from typing import Any
from weakref import finalize

from pydantic import Field, field_validator

from ollama_pack.base.messages import Message, in_language, message
from ollama_pack.base.redis import check_redis_url
from ollama_pack.base.single_flight import process_wide
from ollama_pack.budgets.errors import BudgetSpentError
from ollama_pack.budgets.period import site_zone
from ollama_pack.budgets.table import BudgetTable, BudgetUser, parse_budgets
from ollama_pack.engines.refusals import Refusal
from ollama_pack.services.budget_chats import (
    BUDGET_STATE,
    BudgetKeeper,
    BudgetSettings,
    BudgetTicket,
    ChatBudget,
)
from ollama_pack.services.budgets import Budgets
from ollama_pack.services.cacheable import STATE
from ollama_pack.services.valves import PackValves
from ollama_pack.webui.early_errors import awaited_outcome, note_refusal, show_early_errors
from ollama_pack.webui.models import catalogue, may_use
from ollama_pack.webui.server import data_folder, take_over
from ollama_pack.webui.users import all_group_names, group_names, reader_language

log = logging.getLogger(__name__)

SILENT_SECONDS = 60.0  # after which a stream whose task has ended is over
BUDGET_DATABASE = "ollama_pack_budgets.sqlite3"  # in Open WebUI's folder of data

Body = dict[str, Any]
Emitter = Callable[[dict[str, Any]], Awaitable[None]]
Hook = Callable[..., Awaitable[Any]]


class Filter:
    """Reserves a part of the user's budgets before a chat, and counts what it used afterwards."""

    class Valves(PackValves):
        priority: int = Field(
            default=-10,
            title="Priority",
            description=(
                "Filters run in order of this number, lowest first. Budgets should run before the alias "
                "filter, so that `then=` can name an alias. Default: -10."
            ),
        )
        budgets: str = Field(
            default="",
            title="Budgets",
            description=(
                "One budget per line. Example: `group=students 120 gpu-minutes/day burst=10 "
                "then=queue-last`. A line begins with `everyone`, `role=user`, `group=NAME` or "
                "`user=ADDRESS`. Units: `gpu-seconds`, `gpu-minutes`, `tokens`, `requests`, per `day`, "
                "`week` or `month`. `shared`: all these users together. `burst`: how much more may be used "
                "once. `then`: `refuse`, `queue-last`, or a model that answers instead. `#` starts a "
                "comment. Default: empty, which means no limits, and nothing is stored."
            ),
        )
        time_zone: str = Field(
            default="",
            title="Time zone",
            description=(
                "Time zone in which a day begins, such as `Europe/Berlin`. Default: empty, which means the "
                "server's own."
            ),
        )
        redis_url: str = Field(
            default="",
            title="Redis address",
            description=(
                "Where all workers and replicas count: `redis://…`, `rediss://…`, `unix://…`, "
                "`redis+sentinel://…` or `redis+cluster://…`. Default: empty, which means a SQLite file in "
                "Open WebUI's data folder, shared by the workers of one machine."
            ),
            json_schema_extra={"input": {"type": "password"}},
        )
        show_status: bool = Field(
            default=True,
            title="Show status line",
            description="Show above an answer when less than a fifth of a budget is left. Default: on.",
        )

        @field_validator("budgets")
        @classmethod
        def _readable_rows(cls, text: str) -> str:
            parse_budgets(text)  # a BudgetTableError reaches the admin as the valve's error, row and reason
            return text

        @field_validator("redis_url")
        @classmethod
        def _usable_url(cls, url: str) -> str:
            return check_redis_url(url)

        @field_validator("time_zone")
        @classmethod
        def _known_zone(cls, name: str) -> str:
            site_zone(name.strip())
            return name.strip()

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._keeper = BudgetKeeper()
        # A chat that is under way when this code is updated is counted by the code that comes after it.
        self._chats = process_wide("budget chats", dict[str, ChatBudget])
        self._settling: set[asyncio.Task[None]] = set()
        show_early_errors()

    @property
    def stream(self) -> Hook | None:
        """Open WebUI calls it for each chunk; without a table there is nothing to call."""
        return self._stream if self.valves.budgets else None

    @property
    def outlet(self) -> Hook | None:
        """Called at the end of an answer, likewise."""
        return self._outlet if self.valves.budgets else None

    async def inlet(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __request__: Any,
        __id__: str,
        __event_emitter__: Emitter | None = None,
    ) -> Body:
        """Reserve, or refuse. Anything unexpected is logged, and the chat goes on without budgets."""
        if not self.valves.budgets or _is_browsers_own(body, __metadata__):
            return body
        take_over(__request__.app, __id__, self)
        language = reader_language(__metadata__, __request__)
        try:
            chat = await self._begin(__user__)
            if isinstance(chat, ChatBudget):
                self._follow(chat, body, __metadata__, __request__)
                chat = await self._answered_by(chat, body, __user__, __request__)
            line = _status_line(chat) if isinstance(chat, ChatBudget) and self.valves.show_status else ""
            if line and __event_emitter__:
                status = {"description": in_language(line, language), "done": True}
                await __event_emitter__({"type": "status", "data": status})
        except Exception:
            log.exception("A chat goes on without budgets")
            return body
        if isinstance(chat, Refusal):
            refusal = chat.translated(language)
            note_refusal(__request__, refusal, __metadata__)
            raise BudgetSpentError(refusal.message)
        return body

    async def _stream(self, event: Body, __metadata__: dict[str, Any]) -> Body:
        """Look at a chunk on its way to the user."""
        if (chat := self._chat_of(__metadata__)) is not None:
            chat.take(event, time.monotonic())
        return event

    async def _outlet(self, body: Body, __metadata__: dict[str, Any]) -> Body:
        """An answer has ended: count it."""
        chat = self._chat_of(__metadata__)
        if chat is None:
            return body
        last = (body.get("messages") or [{}])[-1]
        _take_whole(chat, last.get("usage") or {}, __metadata__)
        self._end(chat)
        return body

    def retire(self) -> None:
        """Other code takes over: give the store back once the chats that are under way have been counted."""
        self._keeper.retire()

    # --- for the router, the gateway and the pages: plain values, as each plugin has classes of its own ---

    async def budget_begin(
        self, user: dict[str, Any], metadata: dict[str, Any], model: str, *, always: bool = False
    ) -> dict[str, Any]:
        """Begin to count an answer, also one that came by no filter.

        Args:
            user: who asks.
            metadata: the request's; a chat that the filter has seen is known by it.
            model: the name that was asked for.
            always: it is not refused, as it belongs to a chat that has begun.

        Returns:
            `ticket`: for `budget_note` and `budget_end`; empty: no budget holds. `own`: the caller ends it.
            `last`: it comes behind all others. `refusal`: the fields of a `Refusal`; None: it may begin.
        """
        if (known := self._chat_of(metadata)) is not None:
            known.is_routed = True
            return _begun(known, own=False)
        chat = await self._begin(user, always=always) if self.valves.budgets else None
        if isinstance(chat, ChatBudget) and not always and chat.reservation.model not in ("", model):
            self._end(chat)
            sentence = message("Your budget is used up. Ask for {model}.", model=chat.reservation.model)
            chat = Refusal(HTTPStatus.TOO_MANY_REQUESTS, sentence, "budget_used_up")
        if isinstance(chat, Refusal):
            return {"ticket": "", "own": False, "last": False, "refusal": asdict(chat)}
        return _begun(chat, own=True)

    def budget_note(self, ticket: str, seconds: float, tokens: float) -> None:
        """An answer of a chat took so many seconds of GPU time and so many tokens."""
        if (chat := self._chats.get(ticket)) is not None:
            chat.served.append((seconds, tokens))
            chat.heard_at = time.monotonic()

    def budget_end(self, ticket: str) -> None:
        """Count what `budget_begin` has begun."""
        if (chat := self._chats.get(ticket)) is not None:
            self._end(chat)

    async def budget_usage(self, user: dict[str, Any]) -> dict[str, Any]:
        """The budgets that hold for a user and what is left of them; all that is counted for an admin."""
        if not self.valves.budgets:
            return {"budgets": [], "fault": ""}
        budgets = self._budgets()
        found: dict[str, Any] = {"budgets": await budgets.usage(await _budget_user(user, budgets))}
        if user.get("role") == "admin":
            found["all"] = await budgets.everybody()
            found["problems"] = await _absent_groups(budgets.table)
        return {**found, "fault": budgets.fault if user.get("role") == "admin" else ""}

    def _budgets(self) -> Budgets:
        valves = self.valves
        return self._keeper.budgets(
            BudgetSettings(
                valves.budgets, valves.time_zone, valves.redis_url, data_folder() / BUDGET_DATABASE
            )
        )

    async def _begin(self, user: dict[str, Any], *, always: bool = False) -> ChatBudget | Refusal | None:
        budgets = self._budgets()
        found = await budgets.reserve(await _budget_user(user, budgets), always=always)
        if found is None or isinstance(found, Refusal):
            return found
        chat = ChatBudget(found, budgets, time.monotonic(), is_request=not always)
        self._chats[found.token] = chat
        return chat

    async def _answered_by(
        self, chat: ChatBudget, body: Body, user: dict[str, Any], request: Any
    ) -> ChatBudget | Refusal:
        """Have another model answer, where a budget that is used up says so."""
        model = chat.reservation.model
        if not model:
            return chat
        for model_id in catalogue(request).ids_of(model):
            if await may_use(user, model_id, request):
                body["model"] = model_id
                return chat
        self._end(chat)
        sentence = message(
            "Your budget is used up. The model {model} would answer then, but it is not open to you.",
            model=model,
        )
        return Refusal(HTTPStatus.TOO_MANY_REQUESTS, sentence, "budget_used_up")

    def _follow(self, chat: ChatBudget, body: Body, metadata: dict[str, Any], request: Any) -> None:
        """Count the chat when it ends, however it ends.

        That is at its outlet; or when its task is cancelled; or when nothing refers to its metadata any more,
        as after a client has left. Garbage may be collected late: where nothing is heard of a chat for a
        while after its task has ended, it is over, too.
        """
        ticket = BudgetTicket(ticket=chat.reservation.token)
        metadata[BUDGET_STATE] = ticket
        if isinstance(body.get("metadata"), dict):
            body["metadata"][BUDGET_STATE] = ticket  # a copy, where the Pipelines server has seen the request
        loop = asyncio.get_running_loop()
        finalize(ticket, _soon, loop, self._end, chat).atexit = False
        streams, outcome = bool(body.get("stream")), awaited_outcome(request)

        def task_ended(task: asyncio.Task[Any]) -> None:
            left = task.cancelled() or "left" in outcome
            if "usage" in outcome:  # Open WebUI calls no outlet for an answer without text
                _take_whole(chat, outcome["usage"], metadata)
            if left or not streams or not chat.answered:
                self._end(chat, left=left)
            else:
                self._end_when_silent(chat)

        if (task := asyncio.current_task()) is not None:
            task.add_done_callback(task_ended)

    def _end_when_silent(self, chat: ChatBudget) -> None:
        silent = time.monotonic() - chat.heard_at
        if silent > SILENT_SECONDS:
            self._end(chat)
        elif chat.reservation.token in self._chats:
            later = SILENT_SECONDS - silent + 1
            asyncio.get_running_loop().call_later(later, self._end_when_silent, chat)

    def _chat_of(self, metadata: dict[str, Any]) -> ChatBudget | None:
        state = metadata.get(BUDGET_STATE)
        ticket = state.get("ticket") if isinstance(state, dict) else None  # a client may have sent anything
        return self._chats.get(ticket) if isinstance(ticket, str) else None

    def _end(self, chat: ChatBudget, *, left: bool = False) -> None:
        """Count what a chat has used, once, while its user reads on."""
        if self._chats.pop(chat.reservation.token, None) is None:
            return
        use = chat.use(time.monotonic(), left=left)
        task = asyncio.get_running_loop().create_task(chat.budgets.settle(chat.reservation, use))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)


def _take_whole(chat: ChatBudget, usage: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """A chat's answer has ended, with these figures or none."""
    if (metadata.get(STATE) or {}).get("cached"):
        chat.take_kept()
    elif not chat.figures:
        chat.take_whole(usage, time.monotonic())


def _is_browsers_own(body: Body, metadata: dict[str, Any]) -> bool:
    """Whether a connection of the user's own browser answers.

    Any client can say so of a request: it is true only where the model is the one that the browser has named.
    """
    own = metadata.get("model")
    return bool(metadata.get("direct")) and isinstance(own, dict) and own.get("id") == body.get("model")


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *values: object) -> None:
    """Call something on the loop, from whichever thread collects garbage."""
    with suppress(RuntimeError):  # the server has ended
        loop.call_soon_threadsafe(call, *values)


def _begun(chat: ChatBudget | None, *, own: bool) -> dict[str, Any]:
    """For `budget_begin`."""
    if chat is None:
        return {"ticket": "", "own": False, "last": False, "refusal": None}
    reservation = chat.reservation
    return {"ticket": reservation.token, "own": own, "last": reservation.last, "refusal": None}


async def _budget_user(user: dict[str, Any], budgets: Budgets) -> BudgetUser:
    has_groups = budgets.table.uses_groups and user.get("id")  # the dashboard asks for nobody in particular
    return BudgetUser(
        id=str(user.get("id") or ""),
        email=str(user.get("email") or ""),
        role=str(user.get("role") or ""),
        groups=await group_names(user) if has_groups else frozenset(),
    )


async def _absent_groups(table: BudgetTable) -> list[Message]:
    """What to tell an admin of rows that hold for nobody, as a group was renamed or is written wrongly."""
    absent = table.groups - await all_group_names() if table.groups else ()
    return [
        message(
            "budgets: Open WebUI has no group {name!r}, so its rows hold for nobody: create it, or correct "
            "the table",
            name=name,
        )
        for name in sorted(absent)
    ]


def _status_line(chat: ChatBudget) -> str:
    """What the user reads about the budget; empty: enough is left."""
    if chat.reservation.model:
        return message("your budget is used up · {model} answers", model=chat.reservation.model)
    if chat.reservation.last:
        return message("your budget is used up · others come first")
    return chat.reservation.low
