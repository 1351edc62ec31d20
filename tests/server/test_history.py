"""The history that the dashboard shows, in a real Valkey and in a file: what is kept, found and forgotten."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.valkey import Valkey
from ollama_pack.base.redis import redis_client
from ollama_pack.services import history as history_module
from ollama_pack.services.activity import first_class, minutes_of, note_chat, take_notes
from ollama_pack.services.dashboard import Dashboard, DashboardHistory, added_figures, percentile
from ollama_pack.services.history import HistoryKeeper, HistoryStore, RedisHistory, SqliteHistory

NOW = int(time.time() // 60)


def chat(number: int, **more: Any) -> dict[str, Any]:
    """A chat that ended in this minute."""
    told = {"id": f"c{number}", "at": NOW * 60 + 1.0, "asked": "gpt-4", "model": "llama3:8b", "node": "gpu0"}
    return told | {"user": "u1", "outcome": "answered", "waited": 0.0, "took": 1.0} | more


@asynccontextmanager
async def opened(place: str) -> AsyncIterator[HistoryStore]:
    """The store at a place: a URL, or a file's path."""
    store = RedisHistory(redis_client(place)) if "://" in place else SqliteHistory(Path(place))
    try:
        yield store
    finally:
        await store.close()


def on(place: str, work: Callable[[HistoryStore], Awaitable[None]]) -> None:
    async def run() -> None:
        async with opened(place) as store:
            await work(store)

    asyncio.run(run())


def test_chats_come_back_in_order(place: str) -> None:
    async def work(store: HistoryStore) -> None:
        await store.add([chat(number) for number in range(5)], {})
        newest = await store.older("", 2)
        assert [one["id"] for one in newest] == ["c4", "c3"]
        assert [one["id"] for one in await store.older(newest[-1]["key"], 10)] == ["c2", "c1", "c0"]
        assert [one["id"] for one in await store.newer(newest[-1]["key"], 10)] == ["c4"]
        await store.forget([newest[0]["key"]])
        assert [one["id"] for one in await store.older("", 1)] == ["c3"]

    on(place, work)


def test_it_is_bounded(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a history that fills the disk, or the Redis."""
    monkeypatch.setattr(history_module, "MAX_CHATS", 50)

    async def work(store: HistoryStore) -> None:
        for _ in range(5):
            await store.add([chat(number) for number in range(100)], {NOW - 10_000: {"answered": 1.0}})
        assert 50 <= len(await store.older("", 1000)) <= 200  # a stream is trimmed by whole nodes
        await store.add([], {NOW: {"answered": 1.0}})
        # Redis forgets hours by itself
        left = {NOW} if store.kind == "SQLite" else {NOW - 10_000, NOW}
        assert set(await store.minutes(NOW - 20_000)) == left

    on(place, work)


def test_minutes_add_up_over_processes(place: str) -> None:
    async def work(store: HistoryStore) -> None:
        async with opened(place) as other:
            await store.add([], minutes_of([chat(1, first=0.2, waited=3.0), chat(2, first=0.2)]))
            await other.add([], minutes_of([chat(3, first=5.0), chat(4, outcome="cached", saved=2.5)]))
        figures = (await store.minutes(NOW))[NOW]
        assert figures["answered"] == 3
        assert figures["cached"] == 1
        assert (figures["waited"], figures["saved"]) == (3.0, 2.5)
        assert figures[f"first/{first_class(0.2)}"] == 2
        assert percentile(figures, 0.5) == pytest.approx(0.2, rel=0.1)
        assert percentile(figures, 0.95) == pytest.approx(5.0, rel=0.1)

    on(place, work)


def test_processes_are_seen_while_they_report(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(store: HistoryStore) -> None:
        await store.report("a:1", {"waiting": 2})
        assert await store.processes() == {"a:1": {"waiting": 2}}
        monkeypatch.setattr(history_module, "PROCESS_SECONDS", -1.0)
        assert await store.processes() == {}

    on(place, work)


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    path.write_bytes(b"no database at all" * 1000)

    async def work(store: HistoryStore) -> None:
        await store.add([chat(1)], {})
        assert [one["id"] for one in await store.older("", 9)] == ["c1"]

    on(str(path), work)


def test_nothing_is_lost_while_redis_is_away(tmp_path: Path) -> None:
    """Would catch chats that vanish with a restart of the Redis, or a fault that nobody sees."""

    async def run() -> None:
        take_notes()
        with Valkey(tmp_path) as valkey:
            valkey.stop()
            keeper = HistoryKeeper(lambda: told(valkey.url), None, lambda: told({}))
            note_chat(chat(1))
            await keeper.write()
            assert keeper.fault
            valkey.start()
            await keeper.write()
            assert keeper.fault == ""
            store = await keeper.store()
            assert store is not None
            assert [one["id"] for one in await store.older("", 9)] == ["c1"]
            await keeper.close()

    asyncio.run(run())


async def told(value: Any) -> Any:
    return value


def history_at(path: Path) -> DashboardHistory:
    keeper = HistoryKeeper(lambda: told(""), path, lambda: told({}))
    return DashboardHistory(keeper, lambda _: told({"u1": "Mia Chen"}))


def test_search_finds_what_other_languages_show(tmp_path: Path) -> None:
    """Would catch an admin with a Chinese page who looks for an error as it stands there, and finds none."""

    async def run() -> None:
        history = history_at(tmp_path / "history.sqlite3")
        store = await history.keeper.store()
        assert store is not None
        texts = {"error_text": "No node answers", "error_texts": {"zh-CN": "没有节点应答"}}
        await store.add([chat(1, outcome="failed", **texts), chat(2)], {})
        for text in ("没有节点", "no node"):
            assert [one["id"] for one in (await history.search(text, "", ""))["chats"]] == ["c1"]

    asyncio.run(run())


def test_search_finds_by_name_and_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        history = history_at(tmp_path / "history.sqlite3")
        store = await history.keeper.store()
        assert store is not None
        await store.add([chat(number, user=f"u{number % 2}") for number in range(700)], {})
        found = await history.search("mia", "", "")
        assert len(found["chats"]) == 100
        assert {one["user"] for one in found["chats"]} == {"u1"}
        seen = 0
        while found["next"]:
            seen += len(found["chats"])
            found = await history.search("mia", "answered", found["next"])
        assert seen + len(found["chats"]) == 350
        assert (await history.search("", "failed", ""))["chats"] == []
        assert (await history.search("", "", "1732867200000-0"))["chats"] == []  # a key of Redis
        await history.forget("u1")
        assert len((await history.search("mia", "", ""))["chats"]) == 0
        assert len(await store.older("", 1000)) == 350

    asyncio.run(run())


def test_the_stream_sends_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a page that gets everything each second, or chats twice."""
    monkeypatch.setattr("ollama_pack.services.dashboard.TICK_SECONDS", 0.01)

    async def run() -> None:
        history = history_at(tmp_path / "history.sqlite3")
        store = await history.keeper.store()
        assert store is not None
        await store.add([chat(1)], minutes_of([chat(1)]))
        nodes = [{"name": "gpu0", "in_flight": 0}, {"name": "gpu1", "in_flight": 0}]
        router: dict[str, Any] = {"nodes": nodes}
        dashboard = Dashboard(lambda: told({"router": router, "fault": ""}), {}, history)
        events = dashboard.stream("", "en", lambda: True)
        assert await anext(events) == "retry: 500\n\n"
        first = parsed(await anext(events))
        assert first["whole"]
        assert {"nodes/gpu0", "nodes/gpu1", "router", f"hour/{NOW}", "last_hour"} <= first["parts"].keys()
        assert [one["id"] for one in first["chats"]] == ["c1"]
        router["nodes"] = [{"name": "gpu0", "in_flight": 1}]
        await store.add([chat(2)], {})
        changed = parsed(await anext(events))
        while not changed["parts"]:
            changed = parsed(await anext(events))
        assert changed["parts"]["nodes/gpu0"]["in_flight"] == 1
        assert changed["parts"]["nodes/gpu1"] is None
        assert "router" not in changed["parts"]
        assert [one["id"] for one in changed["chats"]] in (["c2"], [])
        after_redis = dashboard.stream("1732867200000-0", "en", lambda: True)
        await anext(after_redis)
        await anext(after_redis)
        assert {one["id"] for one in parsed(await anext(after_redis))["chats"]} >= {"c1"}

    asyncio.run(run())


def parsed(event: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(event.partition("data: ")[2])
    return told


def test_figures_add_up() -> None:
    assert added_figures([{"a": 1.0}, {"a": 2.0, "b": 1.0}]) == {"a": 3.0, "b": 1.0}
    assert percentile({}, 0.95) is None


def test_minutes_are_read_whatever_another_hosts_clock_says(tmp_path: Path) -> None:
    """Would catch charts that stand still because one host is ten minutes ahead."""

    async def run() -> None:
        history = history_at(tmp_path / "history.sqlite3")
        store = await history.keeper.store()
        assert store is not None
        await store.add([], {NOW + 10: {"answered": 1.0}})
        await history.parts(store, NOW)
        await store.add([], {NOW: {"answered": 2.0}})
        assert (await history.parts(store, NOW))[f"hour/{NOW}"]["answered"] == 2

    asyncio.run(run())
