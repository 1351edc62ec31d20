"""The line of recordings, across tasks and event loops."""

import asyncio
import threading

import pytest

from ollama_pack.speech.errors import SpeechQueueFullError, SpeechShareFullError
from ollama_pack.speech.turns import MAX_AWAY, OWN_SHARE, SLICE_SECONDS, Turn, TurnLine


class Visitor:
    """A recording that stays in its turn until it is told to go."""

    def __init__(self, line: TurnLine, user: str = "", *, is_shared: bool = False) -> None:
        self.places: list[int] = []
        self.changed = asyncio.Event()
        self.has_turn = asyncio.Event()
        self.may_go = asyncio.Event()
        self.turn: Turn | None = None
        self.task = asyncio.create_task(self._visit(line, user, is_shared=is_shared))

    async def _visit(self, line: TurnLine, user: str, *, is_shared: bool) -> None:
        async with line.turn(self._told, user, is_shared=is_shared) as self.turn:
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


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def ended(*visitors: Visitor) -> None:
    for visitor in visitors:
        visitor.may_go.set()
    await asyncio.gather(*(visitor.task for visitor in visitors))


def test_users_take_turns() -> None:
    """Would catch somebody who waits for all recordings of somebody else."""

    async def run() -> None:
        line = a_line()
        many = [Visitor(line, "many") for _ in range(4)]
        one = Visitor(line, "one")
        await one.told(1)
        await many[1].told(2)
        assert many[0].has_turn.is_set()
        await ended(many[0])
        await one.has_turn.wait()
        await ended(one, *many)

    asyncio.run(run())


def test_a_long_recording_gives_way_to_others_and_goes_on() -> None:
    """Would catch a word into the microphone that waits for four hours of somebody else's."""

    async def run() -> None:
        clock, worked = Clock(), dict[str, float]()
        line = TurnLine([], threading.Lock(), worked=worked, clock=clock)
        long = Visitor(line, "long")
        await long.has_turn.wait()
        assert long.turn is not None
        short, other = Visitor(line, "short"), Visitor(line, "other")
        await other.told(2)
        await long.turn.give_way()  # it has hardly begun
        assert not short.has_turn.is_set()
        clock.now = 2 * SLICE_SECONDS
        back = asyncio.create_task(long.turn.give_way())
        await short.has_turn.wait()
        await long.told(2)  # those who have had nothing are before it
        await ended(short)
        await other.has_turn.wait()
        assert not back.done()
        await ended(other)
        await back
        await ended(long)
        assert worked == {}

    asyncio.run(run())


def test_nobody_gives_way_to_oneself() -> None:
    """Would catch recordings of one user that take turns, so that none is done early."""

    async def run() -> None:
        clock = Clock()
        line = TurnLine([], threading.Lock(), clock=clock)
        first, second = Visitor(line, "one"), Visitor(line, "one")
        await second.told(1)
        clock.now = 100.0
        assert first.turn is not None
        await first.turn.give_way()
        assert not second.has_turn.is_set()
        await ended(first, second)

    asyncio.run(run())


def test_one_user_does_not_fill_the_line() -> None:
    """Would catch 17 uploads of one user that leave no place for anybody else."""

    async def run() -> None:
        line = a_line()
        own = int(16 * OWN_SHARE)
        flood = [Visitor(line, "flood") for _ in range(17)]
        await flood[own].told(own)
        refused = [visitor for visitor in flood if visitor.task.done()]
        assert len(refused) == 17 - own - 1
        for visitor in refused:
            with pytest.raises(SpeechShareFullError, match="of your recordings"):
                await visitor.task
        others = [Visitor(line, f"user {number}") for number in range(3)]
        await others[0].told(1)
        await ended(*(visitor for visitor in flood if visitor not in refused), *others)

    asyncio.run(run())


def test_who_has_the_most_makes_room_for_who_has_fewer() -> None:
    """Would catch people who are refused because a few users' uploads fill the line."""

    async def run() -> None:
        line = a_line(limit=8)
        floods = [Visitor(line, user) for user in ("one", "one", "one", "one", "two", "two", "two")]
        shared = Visitor(line, "", is_shared=True)
        people = [Visitor(line, user) for user in ("ann", "bob", "ann")]
        await shared.changed.wait()
        displaced = [floods[3], floods[6]]
        for visitor in displaced:
            with pytest.raises(SpeechShareFullError, match="of your recordings"):
                await visitor.task
        await ended(*(visitor for visitor in floods if visitor not in displaced), shared, *people)

    asyncio.run(run())


def test_the_last_places_are_for_those_who_have_none() -> None:
    """Would catch several floods together, or a microphone for all, that lock everybody else out."""

    async def run() -> None:
        line = a_line()
        shared = [Visitor(line, "", is_shared=True) for _ in range(20)]
        await shared[12].told(12)
        assert sum(visitor.task.done() for visitor in shared) == 7
        new = Visitor(line, "new")
        await new.told(1)
        refused = [visitor for visitor in shared if visitor.task.done()]
        await asyncio.gather(*(visitor.task for visitor in refused), return_exceptions=True)
        await ended(new, *(visitor for visitor in shared if visitor not in refused))

    asyncio.run(run())


def test_who_is_away_keeps_nobody_waiting() -> None:
    """Would catch this machine idle while a server elsewhere listens, and a turn that is had twice."""

    async def run() -> None:
        line = a_line()
        first, second = Visitor(line, "a"), Visitor(line, "b")
        await second.told(1)
        assert first.turn is not None
        async with first.turn.away():
            await second.has_turn.wait()
            back = asyncio.create_task(asyncio.sleep(0))
            await back
            second.may_go.set()
            await second.task
        await ended(first)

    asyncio.run(run())


def test_what_users_have_had_is_forgotten() -> None:
    """Would catch a dictionary that grows with every user who has ever sent a recording."""

    async def run() -> None:
        clock, worked, entries = Clock(), dict[str, float](), list[dict[str, object]]()
        line = TurnLine(entries, threading.Lock(), worked=worked, clock=clock)
        steady = Visitor(line, "steady")
        for number in range(200):
            clock.now += 1.0
            visitor = Visitor(line, f"user {number}")
            await visitor.told(1)
            assert steady.turn is not None
            clock.now += SLICE_SECONDS
            back = asyncio.create_task(steady.turn.give_way())
            await visitor.has_turn.wait()
            await ended(visitor)
            await back
        assert len(worked) < 5
        await ended(steady)
        assert (worked, entries) == ({}, [])

    asyncio.run(run())


def test_users_with_many_away_leave_places_to_others() -> None:
    """Would catch six users whose recordings at a server keep out everybody else."""

    async def run() -> None:
        line = a_line()
        left = asyncio.Event()

        async def visit(user: str) -> None:
            async with line.turn(ignore, user) as turn, turn.away():
                await left.wait()

        async def ignore(_place: int) -> None:
            pass

        tasks = []
        with pytest.raises(SpeechQueueFullError):  # noqa: PT012 - it is the last of them that is refused
            for number in range(MAX_AWAY + 1):
                tasks.append(asyncio.create_task(visit(f"user {number % 6}")))
                await asyncio.sleep(0)
                if tasks[-1].done():
                    await tasks.pop()
        newcomer = asyncio.create_task(visit("somebody else"))
        await asyncio.sleep(0)
        assert not newcomer.done()
        left.set()
        await asyncio.gather(newcomer, *tasks)

    asyncio.run(run())
