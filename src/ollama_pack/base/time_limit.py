"""A time limit that does not run out while this process itself is held up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PARTS = 5  # of a limit: a pause of this process counts as one of them, however long it is


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """What is awaited inside may take so long.

    A server that loads a plugin answers nothing for a second, and a busy machine runs nothing at all for a
    while. Then the limit of `asyncio.timeout` is over, though the answer may have come at once. Here it runs
    out only where the event loop was free to take the answer for four fifths of it.

    Args:
        seconds: the limit.

    Raises:
        TimeoutError: it took longer.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        async def run_out() -> None:
            for _ in range(_PARTS):
                await asyncio.sleep(seconds / _PARTS)
            limit.reschedule(loop.time())

        running_out = loop.create_task(run_out())
        try:
            yield
        finally:
            running_out.cancel()
