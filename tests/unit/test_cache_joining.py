"""Many who ask the same at the same time ask once, and nobody gets the answer to an earlier call."""

import asyncio

import pytest

from ollama_pack.base.single_flight import JoinedCalls


class Calls:
    """Calls that are answered with their number, when the test says so.

    Attributes:
        begun: how many were made.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._answers = asyncio.Semaphore(0)

    async def __call__(self) -> int:
        """One call."""
        self.begun += 1
        number = self.begun
        await self._answers.acquire()
        return number

    def answer(self) -> None:
        """Let one go on."""
        self._answers.release()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_those_who_come_meanwhile_share_the_next_call() -> None:
    """Would catch a crowd that asks one by one, or somebody who gets what was true before he came."""

    async def test() -> None:
        joined, calls = JoinedCalls[str, int](), Calls()
        first = asyncio.create_task(joined.call("a", calls))
        await settle()
        crowd = [asyncio.create_task(joined.call("a", calls)) for _ in range(10)]
        await settle()
        assert calls.begun == 1
        calls.answer()
        await settle()
        assert await first == (1, True)
        late = asyncio.create_task(joined.call("a", calls))
        await settle()
        calls.answer()
        calls.answer()
        answers = [await each for each in crowd]
        assert answers == [(2, True)] + [(2, False)] * 9
        assert await late == (3, True)
        calls.answer()
        assert await joined.call("a", calls) == (4, True)

    asyncio.run(test())


def test_keys_do_not_wait_for_each_other() -> None:
    """Would catch one slow answer that holds up all."""

    async def test() -> None:
        joined, calls = JoinedCalls[str, int](), Calls()
        slow = asyncio.create_task(joined.call("a", calls))
        await settle()
        calls.answer()
        calls.answer()
        assert (await joined.call("b", calls))[1]
        await slow

    asyncio.run(test())


@pytest.mark.parametrize("which", [0, 1])
def test_one_who_leaves_takes_nobody_along(which: int) -> None:
    """Would catch a closed browser tab, whose call others wait for, that cancels or hangs them."""

    async def test() -> None:
        joined, calls = JoinedCalls[str, int](), Calls()
        tasks = []
        for _ in range(4):
            tasks.append(asyncio.create_task(joined.call("a", calls)))
            await settle()
        tasks[which].cancel()
        await settle()
        for _ in range(4):
            calls.answer()
        rest = [task for task in tasks if task is not tasks[which]]
        assert [type(await task) for task in rest] == [tuple] * 3
        calls.answer()
        assert (await joined.call("a", calls))[1]

    asyncio.run(asyncio.wait_for(test(), 10))


def test_failed_call_is_made_again_by_another() -> None:
    """Would catch an error of one call that is everybody's, or a turn that is never over."""

    async def test() -> None:
        joined = JoinedCalls[str, int]()

        async def failing() -> int:
            await asyncio.sleep(0)
            raise RuntimeError("no")

        async def fine() -> int:
            return 1

        results = await asyncio.gather(
            *(joined.call("a", make) for make in (failing, failing, fine)), return_exceptions=True
        )
        assert [type(result) for result in results] == [RuntimeError, RuntimeError, tuple]

    asyncio.run(asyncio.wait_for(test(), 10))
