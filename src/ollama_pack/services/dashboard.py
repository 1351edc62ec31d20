"""What the dashboard shows, in parts that change by themselves, and the stream that sends those that did.

A part has a path, such as `nodes/gpu1`, `cache` or `hour/29412345`. A page that opens gets all of them, then
each second those that are different now; what is gone is sent as null. Chats come apart from these: the last
ones at first, then those that have ended since.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ollama_pack.base.messages import ENGLISH, in_language
from ollama_pack.base.single_flight import SingleFlight
from ollama_pack.engines.body import object_at
from ollama_pack.services.activity import CLASS_FIRST, CLASS_RATIO
from ollama_pack.services.history import Chat, HistoryKeeper, HistoryStore, MinuteFigures, found_chats

log = logging.getLogger(__name__)

STREAM_SECONDS = 15.0  # then the page asks again: so one who signed out does not read on
TICK_SECONDS = 1.0
FIRST_CHATS, NEXT_CHATS = 100, 200
HOUR, DAY, SLOT = 60, 24 * 60, 10  # minutes; the day's chart has a point for each slot
RECENT = 5  # minutes, for what goes on now
KNOWN_NAMES = 10_000

Parts = dict[str, Any]  # path → what is shown there, as JSON has it
Names = Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]


@dataclass
class DashboardHistory:
    """The history as pages read it: figures of minutes are read once, then those that may have changed."""

    keeper: HistoryKeeper
    names: Names
    _minutes: MinuteFigures = field(default_factory=dict)
    _slots: MinuteFigures = field(default_factory=dict)
    _known: dict[str, str] = field(default_factory=dict)

    async def parts(self, store: HistoryStore, now: int) -> Parts:
        """The points of both charts, and what goes on now."""
        oldest = now - DAY
        # A host whose clock is ahead writes minutes to come: those of the others are read nevertheless.
        since = max(oldest, min(now, max(self._minutes, default=0)) - 2)
        read = await store.minutes(since)
        self._minutes = {minute: one for minute, one in self._minutes.items() if minute >= oldest} | read
        touched = {minute // SLOT * SLOT for minute in read}
        self._slots = {slot: one for slot, one in self._slots.items() if slot >= oldest}
        for slot in touched:
            within = (self._minutes.get(minute, {}) for minute in range(slot, slot + SLOT))
            self._slots[slot] = added_figures(within)
        return history_parts(self._minutes, self._slots, now)

    async def named(self, chats: Sequence[Chat]) -> list[Chat]:
        """Chats with their users' names."""
        unknown = {str(chat.get("user") or "") for chat in chats} - self._known.keys() - {""}
        if unknown:
            if len(self._known) + len(unknown) > KNOWN_NAMES:
                self._known.clear()
            found = await self.names(sorted(unknown))
            self._known |= {user: found.get(user, "") for user in unknown}
        return [chat | {"name": self._known.get(str(chat.get("user") or ""), "")} for chat in chats]

    async def search(self, text: str, outcome: str, before: str) -> dict[str, Any]:
        """Chats in which a text occurs, the newest first, and where to go on."""
        store = await self.keeper.store()
        if store is None:
            return {"chats": [], "next": ""}

        async def select(chats: list[Chat]) -> list[Chat]:
            return [chat for chat in await self.named(chats) if matches(chat, text, outcome)]

        try:
            found, following = await found_chats(store, before, FIRST_CHATS, select)
        except (ValueError, OverflowError):  # a key of another store, see `HistoryKeeper.store`
            return {"chats": [], "next": ""}
        return {"chats": found, "next": following}

    async def forget(self, user: str) -> None:
        """Remove the chats of a user who is deleted."""
        self._known.pop(user, None)
        store = await self.keeper.store()

        async def select(chats: list[Chat]) -> list[Chat]:
            return [chat for chat in chats if chat.get("user") == user]

        while store is not None:
            found, _ = await found_chats(store, "", NEXT_CHATS, select)
            if not found:
                return
            await store.forget(chat["key"] for chat in found)


def matches(chat: Chat, text: str, outcome: str) -> bool:
    """Whether a chat is looked for; the page has the same rule for those that come."""
    if outcome and chat.get("outcome") != outcome:
        return False
    shown = [str(chat.get(name) or "") for name in ("asked", "model", "node", "name", "error", "error_text")]
    shown += map(str, object_at(chat.get("error_texts")).values())  # as other languages show it
    return text.casefold() in "\n".join(shown).casefold()


Source = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass
class Dashboard:
    """The dashboard of this process.

    Attributes:
        router: as `RouterContact.dashboard` has it, below `router`, with a `fault`.
        others: path → what else is shown.
        history: of chats.
    """

    router: Source
    others: Mapping[str, Source]
    history: DashboardHistory

    def __post_init__(self) -> None:
        self._shared = SingleFlight(self._parts, TICK_SECONDS)

    async def _parts(self) -> Parts:
        """Everything but chats, by path."""
        told = await self.router()
        parts = router_parts(object_at(told.get("router")), told.get("fault") or "")
        running = [dict(chat) for chat in parts["router"]["running"] or () if isinstance(chat, Mapping)]
        parts["router"]["running"] = await self.history.named(running)
        for path, source in self.others.items():
            parts[path] = await _part(source)
        return parts | await self._figures()

    async def _figures(self) -> Parts:
        keeper, parts = self.history.keeper, {}
        fault = keeper.fault
        try:
            store = await keeper.store()
            if store is not None:
                now = int(time.time() // 60)
                parts = await self.history.parts(store, now)
                processes = await store.processes()
                parts |= {f"processes/{name}": status for name, status in processes.items()}
        except Exception as error:  # noqa: BLE001 - the rest is shown without
            fault = fault or type(error).__name__
        return parts | {"history": {"fault": fault, "process": keeper.name}}

    async def stream(self, last_id: str, language: str, is_wanted: Callable[[], bool]) -> AsyncIterator[str]:
        """Server-sent events for one page.

        Args:
            last_id: of the last event that it has seen; empty: it has just opened.
            language: of the sentences that are in it.
            is_wanted: false ends it.
        """
        sent: dict[str, str] = {}
        ends = time.monotonic() + STREAM_SECONDS
        cursor = last_id
        yield "retry: 500\n\n"
        while True:
            written = {
                path: json.dumps(translated(part, language))
                for path, part in (await self._shared.get()).items()
            }
            changed = {path: text for path, text in written.items() if sent.get(path) != text}
            is_first = not sent
            gone = [path for path in sent if path not in written]
            sent = written
            chats, cursor = await self._chats(cursor)
            pieces = [f"{json.dumps(path)}:{text}" for path, text in changed.items()]
            pieces += [f"{json.dumps(path)}:null" for path in gone]
            whole = "true" if is_first else "false"
            head = f'{{"now":{time.time():.3f},"whole":{whole},"chats":{json.dumps(chats)},"parts":{{'
            yield f"id: {cursor}\ndata: {head}{','.join(pieces)}}}}}\n\n"
            if time.monotonic() >= ends or not is_wanted():
                return
            await asyncio.sleep(TICK_SECONDS)

    async def _chats(self, cursor: str) -> tuple[list[Chat], str]:
        """Chats that have ended since, the oldest first, and the key of the last."""
        try:
            store = await self.history.keeper.store()
            if store is None:
                return [], cursor
            if cursor:
                chats = await store.newer(cursor, NEXT_CHATS)
            else:
                chats = (await store.older("", FIRST_CHATS))[::-1]
            return await self.history.named(chats), chats[-1]["key"] if chats else cursor
        except (ValueError, OverflowError):  # a key of another store: the page knows its chats by their ids
            return [], ""
        except Exception:  # noqa: BLE001 - `_figures` says what is wrong
            return [], cursor


async def _part(source: Source) -> Mapping[str, Any]:
    """What a source says; one that fails leaves the others on the page."""
    try:
        return await source()
    except Exception as error:
        log.exception("A part of the dashboard could not be made")
        return {"fault": type(error).__name__}


def translated(value: Any, language: str) -> Any:
    """JSON with its sentences in a language. Another plugin's translate themselves: it has the words.

    A word alone, such as `failed`, is a name or a code that the page compares, unless it is a message.
    """
    if language == ENGLISH:
        return value
    if isinstance(value, str):
        by_itself = getattr(value, "translated", None)
        if by_itself:
            return by_itself(language)
        return in_language(value, language) if " " in value else value
    if isinstance(value, Mapping):
        return {key: translated(one, language) for key, one in value.items()}
    return [translated(one, language) for one in value] if isinstance(value, list | tuple) else value


def router_parts(told: Mapping[str, Any], fault: str) -> Parts:
    """The parts of a router's report: each node is one."""
    nodes = [dict(node) for node in told.get("nodes") or () if isinstance(node, Mapping)]
    by_path = {f"nodes/{node.get('name')}": node for node in nodes}
    others = {name: told.get(name) for name in ("waiting", "peers", "sharing_fault", "running")}
    upkeep = object_at(told.get("upkeep"))
    others |= {name: upkeep.get(name) or [] for name in ("drained", "pulls")}
    return {"router": {**others, "fault": fault}, **by_path}


def history_parts(minutes: MinuteFigures, slots: MinuteFigures, now: int) -> Parts:
    """The points of both charts, and totals for the figures on top."""
    hour = {minute: figures for minute, figures in minutes.items() if minute > now - HOUR}
    recent = [figures for minute, figures in hour.items() if minute > now - RECENT]
    return {
        **{f"hour/{minute}": point(figures, 1) for minute, figures in hour.items()},
        **{f"day/{slot}": point(figures, SLOT) for slot, figures in slots.items()},
        "recent": point(added_figures(recent), RECENT),
        "last_hour": point(added_figures(hour.values()), HOUR),
        "last_day": point(added_figures(slots.values()), DAY),
    }


def added_figures(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several minutes in one."""
    total: dict[str, float] = {}
    for figures in several:
        for name, value in figures.items():
            total[name] = total.get(name, 0.0) + value
    return total


def point(figures: Mapping[str, float], minutes: int) -> dict[str, float]:
    """What a chart shows of a span of so many minutes; what is 0 is left out.

    `waiting` is how many waited on average: the seconds that chats waited, by the seconds of the span.
    """
    plain = {name: round(value, 3) for name, value in figures.items() if "/" not in name and name != "waited"}
    plain["waiting"] = round(figures.get("waited", 0.0) / (60 * minutes), 3)
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        if (seconds := percentile(figures, share)) is not None:
            plain[name] = round(seconds, 3)
    return {name: value for name, value in plain.items() if value}


def percentile(figures: Mapping[str, float], share: float) -> float | None:
    """A percentile of the times to the first token, at most one class too high; None: there are none."""
    classes = sorted(
        (int(name.partition("/")[2]), count) for name, count in figures.items() if name.startswith("first/")
    )
    left = share * sum(count for _, count in classes)
    for number, count in classes:
        left -= count
        if left <= 1e-9:  # noqa: PLR2004 - sums of shares are not exact
            return CLASS_FIRST * CLASS_RATIO**number
    return None
