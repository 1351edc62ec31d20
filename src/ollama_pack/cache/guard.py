"""A limit and a breaker around a store, so that a chat never waits for it and never sees its errors."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Literal, TypeVar

from ollama_pack.base.breaker import Breaker, BreakerRule
from ollama_pack.base.messages import message, said_by
from ollama_pack.base.single_flight import JoinedCalls
from ollama_pack.base.time_limit import time_limit
from ollama_pack.cache.errors import StoreError, StoreFullError
from ollama_pack.cache.key import Slot
from ollama_pack.cache.store import CacheStore, Kept, Lease, Running

log = logging.getLogger(__name__)

T = TypeVar("T")

# `slow`: the limit ran out; `down`: it failed; `full`: it takes no more; `open`: it was not even asked.
StoreTroubleReason = Literal["slow", "down", "full", "open"]


@dataclass(frozen=True, slots=True)
class StoreTrouble:
    """The store did not do it, and the chat goes on without."""

    reason: StoreTroubleReason


@dataclass(frozen=True, slots=True)
class GuardRule(BreakerRule):
    """When the store is given up.

    Attributes:
        limit: seconds for one answer.
        probe_limit: seconds for the try that decides whether the store is asked again. It is longer than
            `limit`, because it connects, and nobody waits for it.
    """

    threshold: int = 3
    shortest: float = 0.5
    longest: float = 30.0
    limit: float = 0.1
    probe_limit: float = 2.0


class StoreGuard:
    """Closed: the store is asked. Open: it is not. After a while one try in the background decides.

    The log says once that the store is in trouble, and once that it answers again.

    Attributes:
        fault: what is wrong with the store, in words; empty: nothing.
    """

    def __init__(self, store: CacheStore, rule: GuardRule, clock: Callable[[], float]) -> None:
        self._store = store
        self._rule = rule
        self._clock = clock
        self.fault = ""
        self._logged = self._full = False
        self._breaker = Breaker(rule)
        self._probe: asyncio.Task[None] | None = None
        self._joined: JoinedCalls[Slot, Kept | Lease | Running | StoreTrouble] = JoinedCalls()

    @property
    def is_open(self) -> bool:
        """Whether the store is left alone at the moment."""
        return self._breaker.state(self._clock()) != "closed"

    @property
    def limit(self) -> float:
        """Seconds that one answer may take."""
        return self._rule.limit

    @property
    def patient_limit(self) -> float:
        """Seconds that an answer may take for which no chat waits."""
        return self._rule.probe_limit

    async def ask(
        self, step: Callable[[CacheStore], Awaitable[T]], limit: float | None = None
    ) -> "T | StoreTrouble":
        """Ask the store one thing.

        Args:
            step: calls one method of it.
            limit: in seconds, where it is not the rule's.
        """
        if self.is_open:
            self._try_again()
            return StoreTrouble("open")
        seconds = self._rule.limit if limit is None else limit
        try:
            async with time_limit(seconds):
                answer = await step(self._store)
        except TimeoutError:
            return self._failed("slow", message("it does not answer within {seconds:g} s", seconds=seconds))
        except StoreFullError as error:
            self._succeeded()  # it answers, and what it has can be read
            self._log_full(str(error))
            return StoreTrouble("full")
        except StoreError as error:
            return self._failed("down", said_by(error))
        self._succeeded()
        self.fault = ""
        return answer

    async def acquire(self, slot: Slot, *, refresh: bool = False) -> Kept | Lease | Running | StoreTrouble:
        """The answer of a slot, else its lease, else who has that.

        The store is asked once for all of this process that ask for the same at the same time.

        Args:
            slot: the question's.
            refresh: a lease is wanted, whatever is kept.
        """
        token = token_hex(16)
        if refresh:
            return await self.ask(lambda store: store.acquire(slot, token, "refresh"))
        found, own = await self._joined.call(
            slot, lambda: self.ask(lambda store: store.acquire(slot, token, "read"))
        )
        return Running(slot, found.token) if isinstance(found, Lease) and not own else found

    async def close(self) -> None:
        """End a try that is under way."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)

    def _failed(self, reason: StoreTroubleReason, fault: str) -> StoreTrouble:
        self.fault = fault
        if not self.is_open:
            self._breaker.failed(self._clock())
            if self.is_open:
                self._log_trouble(fault)
        return StoreTrouble(reason)

    def _succeeded(self) -> None:
        if not self.is_open:  # else a try decides, and not what was asked before
            self._breaker.succeeded()

    def _log_full(self, fault: str) -> None:
        if not self._full:  # once: what is kept can be read, so it does not recover in one moment
            self._full = True
            log.warning("The response cache keeps no new answers: %s", fault)

    def _log_trouble(self, fault: str) -> None:
        if not self._logged:
            self._logged = True
            log.warning(
                "The response cache cannot use its store: %s. Chats go to their models until it can", fault
            )

    def _log_recovery(self) -> None:
        self.fault = ""
        if self._logged:
            self._logged = False
            log.warning("The response cache can use its store again")

    def _try_again(self) -> None:
        if self._breaker.allows(self._clock()):
            self._breaker.passed()
            self._probe = asyncio.create_task(self._probed())

    async def _probed(self) -> None:
        try:
            async with time_limit(self._rule.probe_limit):
                await self._store.ping()
        except (TimeoutError, StoreError) as error:
            self.fault = said_by(error) or self.fault
            self._breaker.failed(self._clock())
        else:
            self._breaker.succeeded()
            self._log_recovery()
