"""The bridge between threads and the event loop of its own, without a server."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ollama_pack.services.bridge import Bridge
from ollama_pack.services.line_stream import LINES_AHEAD


class Source:
    """Lines on the bridge's loop, and what became of them."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self.said = 0
        self.closed = threading.Event()

    async def lines(self) -> AsyncGenerator[str, None]:
        try:
            while self.said != self.count:
                self.said += 1
                yield f"{self.said} "
                await asyncio.sleep(0)
        finally:
            self.closed.set()


class Ending:
    """What a bridge calls before it ends."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.ended = threading.Event()

    async def __call__(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.ended.set()


def test_lines_come_in_order_and_end() -> None:
    """Would catch lost, doubled or mixed lines."""
    bridge, source = Bridge(Ending()), Source(5000)
    assert "".join(bridge.stream(source.lines)) == "".join(f"{number} " for number in range(1, 5001))
    asyncio.run(bridge.retire())


def test_closing_a_stream_ends_its_source() -> None:
    """Would catch a generation that goes on for nobody."""
    bridge, source = Bridge(Ending()), Source()
    stream = bridge.stream(source.lines)
    next(stream)
    stream.close()
    assert source.closed.wait(30)
    assert list(stream) == []
    asyncio.run(bridge.retire())


def test_a_forgotten_stream_ends_its_source() -> None:
    """Would catch a pump that holds the stream, so that it is never rubbish."""
    bridge, source = Bridge(Ending()), Source()
    stream = bridge.stream(source.lines)
    next(stream)
    del stream
    assert source.closed.wait(30)
    asyncio.run(bridge.retire())


def test_a_slow_client_is_waited_for() -> None:
    """Would catch an answer that is kept as a whole for somebody who takes none of it."""
    bridge, source = Bridge(Ending()), Source()
    stream = bridge.stream(source.lines)
    first = next(stream)
    second = next(stream)
    said = len((first + second).split())
    assert source.said <= said + LINES_AHEAD + 2
    stream.close()
    asyncio.run(bridge.retire())


def test_a_source_that_fails_ends_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a stream that waits for ever for a broken source, or an error that nobody hears of."""

    async def broken() -> AsyncGenerator[str, None]:
        yield "one "
        raise LookupError("not foreseen")

    bridge = Bridge(Ending())
    assert "".join(bridge.stream(broken)) == "one "
    asyncio.run(bridge.retire())
    assert "not foreseen" in caplog.text


def test_it_ends_after_the_last_stream() -> None:
    """Would catch a stream cut off by a reload, or a loop that outlives its last stream."""
    ending = Ending()
    bridge, source = Bridge(ending), Source()
    stream = bridge.stream(source.lines)
    asyncio.run(bridge.retire())
    assert next(stream)
    assert not ending.ended.is_set()
    stream.close()
    assert ending.ended.wait(30)


def test_it_serves_who_comes_late() -> None:
    """Would catch a chat that fails because the server began it just before it loaded its pipelines anew."""
    ending = Ending()
    bridge = Bridge(ending)
    asyncio.run(bridge.retire())
    assert "".join(bridge.stream(Source(2).lines)) == "1 2 "
    assert ending.ended.wait(30)


def test_calls_come_from_threads_and_loops() -> None:
    """Would catch work that is done on another loop than that of the bridge, or an error on its way lost."""
    bridge = Bridge(Ending())

    async def where() -> str:
        return threading.current_thread().name

    async def broken() -> None:
        raise LookupError("as it was")

    with ThreadPoolExecutor() as threads:
        homes = {
            bridge.call(where),
            threads.submit(bridge.call, where).result(),
            asyncio.run(bridge.run(where)),
        }
    assert len(homes) == 1
    assert homes.isdisjoint({threading.current_thread().name})
    with pytest.raises(LookupError, match="as it was"):
        bridge.call(broken)
    asyncio.run(bridge.retire())
