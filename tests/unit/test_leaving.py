"""A client that leaves: its answer stops, and never while Open WebUI reads its database for it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from starlette.responses import StreamingResponse

from ollama_pack.webui import leaving
from ollama_pack.webui.leaving import Leaving

WORD = 'data: {"choices": [{"delta": {"content": "word"}}]}\n\n'
FINISH = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
DONE = "data: [DONE]\n\n"
HELD_BACK = "event: message_start\ndata: {}\n\n"


class Site:
    """A server that answers as Open WebUI does: it reads, waits for a model, and reads again."""

    def __init__(self, leaves_at: str, *, hangs_at: str = "") -> None:
        self.happened: list[str] = []
        self._leaves_at, self._hangs_at = leaves_at, hangs_at
        self._left = asyncio.Event()
        self._asked = False
        self.has_left = False
        if leaves_at == "before":
            self._left.set()

    async def run(self) -> list[str]:
        """What happened, in order."""
        way = Leaving()
        receive = partial(way.receive, self._receive)
        assert (await receive())["type"] == "http.request"
        response = StreamingResponse(self._answer(), media_type="text/event-stream")
        scope = {"type": "http", "method": "POST", "asgi": {"spec_version": "2.3"}}
        async with asyncio.timeout(10):
            await response(scope, receive, partial(way.send, self._send))
        self.has_left = way.before_the_end
        way.end()
        return self.happened

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._leaves_at in str(message.get("body")):
            self._left.set()

    async def _answer(self) -> AsyncGenerator[str, None]:
        await self._step("read before")
        yield HELD_BACK
        await self._step("read again")
        await self._step("model")
        for text in (WORD, WORD, WORD, FINISH, DONE):
            yield text
            if text is WORD:
                await self._step("model")
        await self._step("read after")

    async def _step(self, name: str) -> None:
        if name == self._leaves_at:
            self._left.set()
        with self._noted(name):
            for _ in range(20):
                await asyncio.sleep(0)
            if name == self._hangs_at:
                await asyncio.Event().wait()

    @contextmanager
    def _noted(self, name: str) -> Any:
        try:
            yield
        except asyncio.CancelledError:
            self.happened.append(f"{name} cancelled")
            raise
        self.happened.append(name)


@pytest.mark.parametrize("leaves_at", ["before", "message_start", "word", "finish_reason", "[DONE]", "never"])
def test_no_read_is_cancelled(leaves_at: str) -> None:
    """Would catch a database connection of Open WebUI 0.11.2 that is lost each time a client leaves."""
    happened = asyncio.run(_site(leaves_at))
    assert not [one for one in happened if one.startswith("read") and one.endswith("cancelled")]
    ends = leaves_at in {"finish_reason", "[DONE]", "never"}
    assert ("read after" in happened) == ends
    if leaves_at == "before":
        assert happened == []


@pytest.mark.parametrize("leaves_at", ["before", "word", "[DONE]", "never"])
def test_it_is_known_who_left(leaves_at: str) -> None:
    """Would catch an answer that is counted only once garbage is collected, as nobody tells that it ended."""
    site = Site(leaves_at)
    asyncio.run(site.run())
    assert site.has_left == (leaves_at != "never")


def test_the_wait_for_a_model_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a client that has left and keeps its place in the queue."""
    monkeypatch.setattr(leaving, "BEGIN_SECONDS", 0.01)
    assert asyncio.run(_site("model", hangs_at="model"))[-1] == "model cancelled"


def test_a_filter_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an answer that never ends because another plugin's filter does not."""
    monkeypatch.setattr(leaving, "END_SECONDS", 0.01)
    assert asyncio.run(_site("[DONE]", hangs_at="read after"))[-1] == "read after cancelled"


def test_one_that_looks_around_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch `is_disconnected`, which looks for no time at all, never hearing of it."""
    monkeypatch.setattr(leaving, "BEGIN_SECONDS", 0.0)

    async def looks() -> dict[str, Any]:
        site = Site("before")
        way = Leaving()
        receive = partial(way.receive, site._receive)  # noqa: SLF001 - the client's side
        await receive()
        found = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        found.cancel()
        with suppress(asyncio.CancelledError):
            return await found
        return {}

    assert asyncio.run(looks()) == {"type": "http.disconnect"}


async def _site(leaves_at: str, *, hangs_at: str = "") -> list[str]:
    return await Site(leaves_at, hangs_at=hangs_at).run()
