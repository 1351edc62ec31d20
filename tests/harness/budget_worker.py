"""Budgets on one store as several processes have them, and a real process that reserves and settles."""

import asyncio
import random
import sys
from pathlib import Path

from ollama_pack.base.redis import redis_client
from ollama_pack.budgets.store import BudgetStore
from ollama_pack.budgets.store_redis import RedisBudgetStore
from ollama_pack.budgets.store_sqlite import SqliteBudgetStore
from ollama_pack.budgets.table import BudgetUser, parse_budgets
from ollama_pack.services.budgets import Budgets, BudgetUse, Reservation

ROWS = "everyone 900000000 tokens/month\neveryone 900000000 requests/month shared"
USERS = [BudgetUser(f"u{number}") for number in range(4)]
AT_ONCE = 8
MOST_TOKENS = 100


def open_budget_store(place: str) -> BudgetStore:
    """A store by its URL, or by the path of an SQLite file."""
    return RedisBudgetStore(redis_client(place)) if "://" in place else SqliteBudgetStore(Path(place))


async def work(place: str, requests: int) -> None:
    """Settle so many requests, several at once. A line before each begins, and one after it is settled."""
    budgets = Budgets(parse_budgets(ROWS), open_budget_store(place))
    left = iter(range(requests))

    async def ask() -> None:
        for _ in left:
            tokens = random.randint(1, MOST_TOKENS)  # noqa: S311 - any will do
            print(f"begin {tokens}", flush=True)  # noqa: T201 - how the test is told
            reservation = await budgets.reserve(random.choice(USERS))  # noqa: S311
            assert isinstance(reservation, Reservation), budgets.fault
            await budgets.settle(reservation, BudgetUse(0.0, tokens))
            assert not budgets.fault
            print(f"settled {tokens}", flush=True)  # noqa: T201

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    await budgets.close()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2])))
