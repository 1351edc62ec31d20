"""Many who ask the same ask once; answers are kept for a while, and renewed before they are too old."""

import asyncio

import pytest

from ollama_pack.base.single_flight import Remembered, SingleFlight

SECONDS = 4.0


class Source:
    """Answers with how often it was asked; the clock is its own."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 0.0
        self.fails = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def clock(self) -> float:
        return self.now

    async def ask(self) -> int:
        self.asked += 1
        await self.may_answer.wait()
        await asyncio.sleep(0)
        if self.fails:
            raise OSError("down")
        return self.asked


async def soon() -> None:
    """Let what was begun in the background end."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_one_question_for_all() -> None:
    """Would catch a question for each asker, or an answer that is never renewed."""

    async def run() -> None:
        source = Source()
        source.may_answer.clear()
        shared = SingleFlight(source.ask, 1.0, lambda: source.now)
        askers = [asyncio.ensure_future(shared.get()) for _ in range(50)]
        await asyncio.sleep(0)
        source.may_answer.set()
        assert await asyncio.gather(*askers) == [1] * 50
        source.now = 1.0
        assert await shared.get() == 1
        source.now = 1.01
        assert await shared.get() == 2

    asyncio.run(run())


def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    """Would catch a closed browser tab that fails the request of everybody who waits with it."""

    async def run() -> None:
        source = Source()
        source.may_answer.clear()
        shared = SingleFlight(source.ask, 1.0, lambda: source.now)
        first, second = (asyncio.ensure_future(shared.get()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        source.may_answer.set()
        assert await second == 1

    asyncio.run(run())


def test_an_error_is_not_kept() -> None:
    """Would catch a fault that is told on after it is over, or one that nobody is told of."""

    async def run() -> None:
        source = Source()
        source.fails = True
        shared = SingleFlight(source.ask, 1.0, lambda: source.now)
        with pytest.raises(OSError, match="down"):
            await shared.get()
        source.fails = False
        assert await shared.get() == 2

    asyncio.run(run())


def test_what_is_remembered_is_bounded_and_forgotten() -> None:
    now = 0.0
    kept: Remembered[int, int] = Remembered(5.0, limit=2, clock=lambda: now)
    asked: list[int] = []

    async def square(number: int) -> int:
        async def ask() -> int:
            asked.append(number)
            return number * number

        return await kept.get(number, ask)

    async def play() -> None:
        nonlocal now
        assert [await square(2), await square(2)] == [4, 4]
        assert asked == [2]
        now = 6.0
        await square(2)
        assert asked == [2, 2]
        for number in (3, 4):
            await square(number)
        assert kept.find(2) is None  # the oldest had to go
        kept.forget()
        assert kept.find(4) is None

    asyncio.run(play())


def test_an_answer_from_before_a_change_is_not_kept() -> None:
    """Would catch a grant that is taken away while it is looked up, and then remembered for seconds."""
    kept: Remembered[str, int] = Remembered(5.0)

    async def ask() -> int:
        kept.forget()
        return 1

    assert asyncio.run(kept.get("key", ask)) == 1
    assert kept.find("key") is None


@pytest.mark.parametrize("keyed", [False, True])
def test_an_answer_is_renewed_before_somebody_waits_for_it(keyed: bool) -> None:  # noqa: FBT001
    """Would catch one request in some seconds that pays for all, or an answer older than it may be."""

    async def ages() -> list[int]:
        source = Source()
        flight = SingleFlight(source.ask, SECONDS, source.clock, ahead=True)
        remembered: Remembered[str, int] = Remembered(SECONDS, clock=source.clock)

        async def get() -> int:
            given = await (remembered.get("key", source.ask) if keyed else flight.get())
            await soon()
            return given

        given = []
        for source.now in (0.0, 1.9, 2.1, 2.2, 3.9, 4.5, 20.0):
            given.append(await get())
        return given

    assert asyncio.run(ages()) == [1, 1, 1, 2, 2, 2, 4]  # the last was too old, and waited for


def test_an_error_in_the_background_reaches_the_next_one() -> None:
    """Would catch a user whose access was taken away, and who goes on with what is remembered."""

    async def main() -> None:
        source = Source()
        remembered: Remembered[str, int] = Remembered(SECONDS, clock=source.clock)
        assert await remembered.get("key", source.ask) == 1
        source.now, source.fails = 2.1, True
        assert await remembered.get("key", source.ask) == 1
        await soon()
        with pytest.raises(OSError, match="down"):
            await remembered.get("key", source.ask)

    asyncio.run(main())


def test_what_is_forgotten_does_not_come_back() -> None:
    """Would catch an answer of before a change that arrives after it."""

    async def main() -> None:
        source = Source()
        remembered: Remembered[str, int] = Remembered(SECONDS, clock=source.clock)
        await remembered.get("key", source.ask)
        source.now = 2.1
        await remembered.get("key", source.ask)
        await asyncio.sleep(0)  # now it is being asked for in the background
        remembered.forget()
        await soon()
        assert remembered.find("key") is None

    asyncio.run(main())
