"""A time limit while this process is held up, and while it is not."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ollama_pack.base.time_limit import time_limit


def hold_up(seconds: float) -> None:
    """Keep the event loop from running, as a plugin does that is being loaded."""
    time.sleep(seconds)


def test_what_takes_too_long_is_given_up() -> None:
    """Would catch a limit that never runs out, or that leaves what it gave up running."""
    ended = []

    async def step() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append("step")

    async def test() -> None:
        with pytest.raises(TimeoutError):
            async with time_limit(0.05):
                await step()

    asyncio.run(test())
    assert ended == ["step"]


def test_an_answer_that_is_there_counts_though_this_process_was_held_up() -> None:
    """Would catch a store that is given up, and budgets that do not hold, while a server loads a plugin."""

    async def test(thread: ThreadPoolExecutor) -> list[str]:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, hold_up, 0.5)
        found = []
        async with time_limit(0.1):
            for part in ("one", "two", "three"):  # a store answers in several steps
                await asyncio.sleep(0.005)
                found.append(await loop.run_in_executor(thread, str, part))
        return found

    with ThreadPoolExecutor(1) as thread:
        assert asyncio.run(test(thread)) == ["one", "two", "three"]


def test_errors_and_cancelling_pass() -> None:
    """Would catch a limit that hides what went wrong inside, or takes a cancel for its own."""

    async def failing() -> None:
        async with time_limit(5):
            raise KeyError("inside")

    async def cancelled() -> None:
        task = asyncio.create_task(waiting())
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def waiting() -> None:
        async with time_limit(5):
            await asyncio.sleep(10)

    with pytest.raises(KeyError):
        asyncio.run(failing())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
