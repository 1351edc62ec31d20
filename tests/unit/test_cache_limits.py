"""Limits that share a timer do what `asyncio.timeout` does."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from ollama_pack.cache.limits import TimeLimits

LIMIT = 0.02
LONG = 60.0

Within = Callable[[float, Awaitable[Any]], Coroutine[Any, Any, Any]]


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on a loop of each kind: Open WebUI's server has uvloop's, where that is installed."""
    kind = pytest.importorskip(request.param, reason="uvloop is not installed")

    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=kind.new_event_loop) as runner:
            runner.run(main)

    return run


async def by_asyncio(seconds: float, step: Awaitable[Any]) -> Any:
    async with asyncio.timeout(seconds):
        return await step


async def at_once() -> str:
    return "at once"


async def in_time() -> str:
    for _ in range(3):
        await asyncio.sleep(0)
    return "in time"


async def never() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    await asyncio.sleep(0)
    raise LookupError


async def answers_when_cancelled() -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "all the same"
    return "never"


async def fails_when_cancelled() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise LookupError from None


async def limited(within: Within, step: Callable[[], Awaitable[Any]], *, ending: bool) -> tuple[str, int]:
    """What came out of a step, and how often its task counts as cancelled then.

    Args:
        within: sets the limit.
        step: is limited.
        ending: the task has been cancelled before, and tidies up.
    """
    task = asyncio.current_task()
    assert task is not None
    if ending:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
    try:
        outcome = str(await within(LIMIT, step()))
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - which one it is, is the answer
        outcome = type(error).__name__
    return outcome, task.cancelling()


async def outcome_of(
    within: Within, step: Callable[[], Awaitable[Any]], cancelled_at: float | None, *, ending: bool
) -> tuple[str, int]:
    task = asyncio.create_task(limited(within, step, ending=ending))
    if cancelled_at is not None:
        asyncio.get_running_loop().call_later(cancelled_at, task.cancel)
    return await task


STEPS = (at_once, in_time, never, fails, answers_when_cancelled, fails_when_cancelled)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("cancelled_at", [None, LIMIT / 2, LIMIT])
@pytest.mark.parametrize("ending", [False, True])
def test_outcome_is_that_of_asyncio(
    run: Run, step: Callable[[], Awaitable[Any]], cancelled_at: float | None, *, ending: bool
) -> None:
    """Would catch a stop button taken for a slow store, or a slow store that counts as one for good."""

    async def both() -> None:
        expected = await outcome_of(by_asyncio, step, cancelled_at, ending=ending)
        assert await outcome_of(TimeLimits().within, step, cancelled_at, ending=ending) == expected

    run(both())


def test_shorter_limit_that_comes_later_ends_first(run: Run) -> None:
    """Would catch a timer that stays at the end of an earlier, longer wait."""

    async def main() -> None:
        limits = TimeLimits()
        longest = asyncio.create_task(limits.within(LONG, never()))
        await asyncio.sleep(0)
        async with asyncio.timeout(LONG / 2):
            with pytest.raises(TimeoutError):
                await limits.within(LIMIT, never())
            with pytest.raises(TimeoutError):  # and the timer is there again for the next
                await limits.within(LIMIT, never())
        assert not longest.done()
        longest.cancel()
        with pytest.raises(asyncio.CancelledError):
            await longest

    run(main())


def test_each_of_many_waits_ends_at_its_own_limit(run: Run) -> None:
    """Would catch one timer that ends all waits with the first, or forgets those after it."""

    async def main() -> None:
        limits, ended = TimeLimits(), list[float]()

        async def wait(seconds: float) -> None:
            with pytest.raises(TimeoutError):
                await limits.within(seconds, never())
            ended.append(seconds)

        async with asyncio.timeout(LONG), asyncio.TaskGroup() as group:
            for number in (3, 1, 4, 2):
                group.create_task(wait(number * 4 * LIMIT))
        assert ended == sorted(ended)

    run(main())


def test_limit_inside_of_a_limit(run: Run) -> None:
    """Would catch a limit that knows one wait of a task only."""

    async def main() -> None:
        limits = TimeLimits()

        async def inner() -> str:
            with pytest.raises(TimeoutError):
                await limits.within(LIMIT, never())
            return "went on"

        assert await limits.within(LONG, inner()) == "went on"
        with pytest.raises(TimeoutError):
            await limits.within(LIMIT, limits.within(LONG, never()))

    run(main())
