"""The line of recordings, across tasks and event loops."""

import asyncio
import threading

import pytest

from ollama_pack.speech.errors import SpeechQueueFullError
from ollama_pack.speech.turns import TurnLine


class Visitor:
    """A recording that stays in its turn until it is told to go."""

    def __init__(self, line: TurnLine) -> None:
        self.places: list[int] = []
        self.changed = asyncio.Event()
        self.has_turn = asyncio.Event()
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self._visit(line))

    async def _visit(self, line: TurnLine) -> None:
        async with line.turn(self._told):
            self.has_turn.set()
            await self.may_go.wait()

    async def _told(self, place: int) -> None:
        self.places.append(place)
        self.changed.set()

    async def told(self, place: int) -> None:
        while place not in self.places:
            self.changed.clear()
            await self.changed.wait()


def a_line(limit: int = 16) -> TurnLine:
    return TurnLine([], threading.Lock(), limit)


def test_one_at_a_time_in_order_with_places() -> None:
    """Would catch two recordings at once, a queue out of order, and places that are not told."""

    async def run() -> None:
        line = a_line()
        first, second, third = (Visitor(line) for _ in range(3))
        await third.told(2)
        assert [visitor.has_turn.is_set() for visitor in (first, second, third)] == [True, False, False]
        first.may_go.set()
        await second.has_turn.wait()
        await third.told(1)
        assert not third.has_turn.is_set()
        second.may_go.set()
        await third.has_turn.wait()
        third.may_go.set()
        await asyncio.gather(first.task, second.task, third.task)
        assert (first.places, second.places, third.places) == ([], [1], [2, 1])

    asyncio.run(run())


def test_who_gives_up_leaves_the_line() -> None:
    """Would catch a cancelled recording that blocks all after it, waiting or working."""

    async def run() -> None:
        line = a_line()
        first, second, third = (Visitor(line) for _ in range(3))
        await third.told(2)
        second.task.cancel()
        await third.told(1)
        first.task.cancel()
        await third.has_turn.wait()
        third.may_go.set()
        await third.task

    asyncio.run(run())


def test_a_full_line_says_the_limit() -> None:
    """Would catch a line without end."""

    async def run() -> None:
        line = a_line(limit=1)
        first, second = Visitor(line), Visitor(line)
        await second.told(1)
        with pytest.raises(SpeechQueueFullError) as caught:
            async with line.turn(first._told):  # noqa: SLF001 - any callback will do
                pass
        assert (caught.value.limit, caught.value.waiting) == (1, 1)
        for visitor in (first, second):
            visitor.may_go.set()
        await asyncio.gather(first.task, second.task)

    asyncio.run(run())


def test_other_event_loops_wait_as_well_and_dead_ones_are_passed_over() -> None:
    """Would catch a line that holds for one thread only, or that waits for a loop that has ended."""
    line = a_line()
    inside, leave = threading.Event(), threading.Event()

    async def quiet(_: int) -> None:
        pass

    async def hold() -> None:
        async with line.turn(quiet):
            inside.set()
            await asyncio.to_thread(leave.wait, 60)

    async def last() -> None:
        async def leave_at_once(_: int) -> None:
            leave.set()

        async with line.turn(leave_at_once):
            assert leave.is_set()

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    assert inside.wait(60)
    ended = asyncio.new_event_loop()
    ended.close()

    def tell(place: int) -> None:
        ended.call_soon_threadsafe(print, place)

    line._join(tell)  # noqa: SLF001 - it never leaves
    asyncio.run(last())
    thread.join()
