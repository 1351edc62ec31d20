"""Carries what workers share over Redis or Valkey. Without it each goes on alone, and joins again later."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ollama_pack.base.redis import RedisClient, redis_fault, redis_faults, run_script
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.peers.scripts import (
    CLAIM_MS,
    EVENTS_KEPT,
    EVENTS_MS,
    SHARE_PREFIX,
    SHARE_SCRIPTS,
)
from ollama_pack.routing.peers.share import BEAT_SECONDS, ClaimRefusal, FleetShare, ShareStep, SlotClaim

share_log = logging.getLogger(__name__)

CLAIM_SECONDS = 0.1  # that a chat waits for an answer before it goes on without
STEP_SECONDS = 1.0  # after which the connection is given up
READ_MS = 2000
READ_AT_ONCE = 256
FIRST_RETRY, LAST_RETRY = 0.5, 10.0  # seconds between two tries to join
UNUSED_SECONDS = 600.0  # after which it leaves, until it is started again


class _UnusedError(Exception):
    """Nobody has used this worker's router for long, perhaps because there is a newer one."""


class RedisShare:
    """Connects a `FleetShare` with the others. Lives on one event loop."""

    def __init__(
        self,
        share: FleetShare,
        client: RedisClient,
        waiting: RedisClient,
        decide: Callable[[], None],
        prefix: str = SHARE_PREFIX,
    ) -> None:
        """Take what is needed; nothing is connected before `start`.

        Args:
            share: this worker's.
            client: for what is answered at once. This closes both clients.
            waiting: another one to the same place, for reads that wait.
            decide: called when something was heard that may let a waiting request begin.
            prefix: of all keys, with a hash tag in it.
        """
        self._share = share
        self._client = client
        self._waiting = waiting
        self._decide = decide
        self._prefix = prefix
        self._answers: dict[str, asyncio.Future[ClaimRefusal | None]] = {}
        self._wanted = asyncio.Event()
        self._stalled = False
        self._told = False  # that nobody answers
        self.fault = ""
        self._task: asyncio.Task[None] | None = None
        self._used_at = 0.0
        share.wake = self._wanted.set

    def start(self) -> None:
        """Join the others, now or as soon as it is possible. To be called whenever the router is used."""
        loop = asyncio.get_running_loop()
        self._used_at = loop.time()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="fleet share")

    async def close(self) -> None:
        """Tell the others that this worker goes, but do not wait long for it."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._share.connected:
            self._share.say_bye()
            with suppress(*redis_faults()):
                async with asyncio.timeout(STEP_SECONDS):
                    await self._empty_outbox()
            self._share.leave()
        await self._close_clients()

    async def _close_clients(self) -> None:
        for client in (self._client, self._waiting):
            with suppress(*redis_faults()):
                await client.aclose()

    async def claim(self, binding: Assignment) -> bool:
        """Take the slot that a binding wants, before the request is sent.

        Takes at most `CLAIM_SECONDS`: when nobody answers the request is sent without asking.

        Returns:
            False: another worker was faster. The request waits in the scheduler again; decide anew.
        """
        if not self._share.connected:
            return True
        if self._stalled:
            self._share.assume(binding)
            return True
        answer = asyncio.get_running_loop().create_future()
        self._answers[binding.request.id] = answer
        self._share.claim(binding)
        try:
            async with asyncio.timeout(CLAIM_SECONDS):
                refusal = await answer
        except TimeoutError:
            self._stalled = True
            return True
        finally:
            self._answers.pop(binding.request.id, None)
        if refusal is None:
            return True
        self._share.refused(binding, refusal)
        return False

    # --- the connection ---

    async def _run(self) -> None:
        """Join, and join again, until it is cancelled or nobody uses it."""
        retry = FIRST_RETRY
        while self._is_used():
            try:
                last = await self._last_event()
                self._stalled = False
                self._share.join()
                self.fault = ""
                retry = FIRST_RETRY
                async with asyncio.TaskGroup() as tasks:
                    for work in (self._read(last), self._write(), self._beat()):
                        tasks.create_task(work)
            except* _UnusedError:
                pass  # unless somebody has come meanwhile this was the last time
            except* redis_faults() as group:
                self._tell_once(group.exceptions[0])
            except* Exception:  # noqa: BLE001 - chats must not suffer from what other workers say
                share_log.exception("Something went wrong between workers that share the nodes")
            self._share.leave()
            self._answer_all()
            self._decide()
            await asyncio.sleep(retry)
            retry = min(2 * retry, LAST_RETRY)
        self._share.leave()
        await self._close_clients()

    def _is_used(self) -> bool:
        unused = asyncio.get_running_loop().time() - self._used_at
        return unused < UNUSED_SECONDS or self._share.is_busy

    def _tell_once(self, fault: Exception) -> None:
        """One line a time that it is down, not one a try."""
        self.fault = redis_fault(fault)
        if not self._told:
            self._told = True
            share_log.warning(
                "The Redis by which workers share the nodes (redis_url) does not answer (%s): this one "
                "goes on alone, and joins the others once it does",
                self.fault,
            )

    def _answer_all(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)

    async def _last_event(self) -> str:
        key = f"{self._prefix}events"
        async with asyncio.timeout(STEP_SECONDS):
            found = await self._client.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
        return found[0][0].decode() if found else "0-0"

    async def _read(self, last: str) -> None:
        key = f"{self._prefix}events"
        while True:
            async with asyncio.timeout(READ_MS / 1000 + STEP_SECONDS):
                found = await self._waiting.execute_command(
                    "XREAD", "COUNT", READ_AT_ONCE, "BLOCK", READ_MS, "STREAMS", key, last
                )
            _heed_cancelling()
            news = False
            for name, fields in _share_records(found):
                last = name
                news |= self._hear(fields.get(b"m", b""))
            if news:
                self._decide()

    def _hear(self, payload: bytes) -> bool:
        """One odd message is passed over: it does not part this worker from the others."""
        try:
            return self._share.hear(payload)
        except Exception:  # noqa: BLE001 - chats must not suffer from what other workers say
            share_log.exception("A message of another worker could not be used")
            return False

    async def _write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._empty_outbox()

    async def _empty_outbox(self) -> None:
        """One step after another, so that a slot is free before it is claimed anew."""
        while self._share.outbox:
            step = self._share.outbox.popleft()
            async with asyncio.timeout(STEP_SECONDS):
                answer = await self._do(step)
            _heed_cancelling()
            self._stalled = False
            if step.kind == "claim" and step.claim:
                self._claimed(step.claim, answer)

    def _claimed(self, claim: SlotClaim, answer: list[bytes]) -> None:
        waiting = self._answers.get(claim.request_id)
        if not answer:
            self._share.granted(claim)
        if waiting and not waiting.done():
            waiting.set_result(_refusal(claim, answer))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if not self._is_used():
                self._share.say_bye()
                await self._empty_outbox()
                raise _UnusedError
            self._told = False  # it has answered for a while
            self._share.beat()
            self._decide()  # somebody may have been forgotten

    # --- one step ---

    async def _do(self, step: ShareStep) -> Any:
        keys, arguments = [f"{self._prefix}events"], ["", step.payload, EVENTS_KEPT, EVENTS_MS]
        if claim := step.claim:
            keys = [self._slots(claim, claim.blob), f"{self._prefix}load:{claim.node}", *keys]
            keys += [self._slots(claim, victim) for victim in claim.victims] if step.kind == "claim" else []
            arguments[0] = claim.request_id
            arguments += [claim.slots, CLAIM_MS, int(claim.loads), _blob_key(claim.blob)]
            arguments += [_blob_key(victim) for victim in claim.victims]
        return await run_script(self._client.execute_command, SHARE_SCRIPTS[step.kind], keys, *arguments)

    def _slots(self, claim: SlotClaim, blob: str) -> str:
        return f"{self._prefix}slots:{claim.node}:{_blob_key(blob)}"


def _heed_cancelling() -> None:
    """End where this task is to end: Python 3.11 loses a cancel that comes just as a command is answered."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _blob_key(blob: str) -> str:
    return hashlib.blake2b(blob.encode(), digest_size=8).hexdigest()


def _refusal(claim: SlotClaim, answer: list[bytes]) -> ClaimRefusal | None:
    """What a claim was answered, with the weights by their own names again."""
    if not answer:
        return None
    hashed, *holders = (part.decode() for part in answer)
    names = {_blob_key(blob): blob for blob in (claim.blob, *claim.victims)}
    return ClaimRefusal(names.get(hashed, ""), tuple(holders))


def _share_records(found: Any) -> list[tuple[str, dict[bytes, bytes]]]:
    """The entries of the one stream that was read: id and fields."""
    streams = found.items() if isinstance(found, dict) else found or ()
    return [(name.decode(), dict(fields)) for _, entries in streams for name, fields in entries]
