"""Answers that are kept for a while, and asked for anew before they are too old."""

import asyncio

import pytest

from ollama_pack.base.single_flight import Remembered, SingleFlight

SECONDS = 4.0


class Source:
    """Counts the questions; the clock is its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.fails = False

    def clock(self) -> float:
        return self.now

    async def ask(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.fails:
            raise OSError("away")
        return self.asked


async def soon() -> None:
    """Let what was begun in the background end."""
    for _ in range(5):
        await asyncio.sleep(0)


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
        with pytest.raises(OSError, match="away"):
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
