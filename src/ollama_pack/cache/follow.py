"""One generation for many: the followers' side, in every process but the leader's."""

import asyncio
from secrets import token_hex

import orjson

from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.generation import END_RECORD, GenerationTools
from ollama_pack.cache.guard import StoreTrouble
from ollama_pack.cache.keyring import StreamCipher
from ollama_pack.cache.live import LiveAnswer
from ollama_pack.cache.store import Running, Tail

_RETRY_TAIL_SECONDS = 0.05
_ANSWER_SECONDS = 0.5  # that a read may take beyond the time it waits; no chat is held up by it


class LiveHub:
    """The generations that this process knows of: its own, and those of others that it follows.

    However many of its requests follow one generation, it is read from the store once.
    """

    def __init__(self, tools: GenerationTools) -> None:
        self._tools = tools
        self._follower = token_hex(8)
        self._lives: dict[str, LiveAnswer] = {}
        self._tails: dict[LiveAnswer, asyncio.Task[None]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether anything is being generated, or read along."""
        return bool(self._lives)

    def add(self, token: str, live: LiveAnswer) -> None:
        """Let others of this process listen to a generation of its own."""
        self._lives[token] = live

    def remove(self, token: str) -> None:
        """It is over: who comes now reads what is kept, or the stream."""
        self._lives.pop(token, None)

    def live_of(self, scope: str, running: Running) -> LiveAnswer:
        """Where to listen to a running generation."""
        live = self._lives.get(running.token)
        if live is None:
            live = self._lives[running.token] = LiveAnswer()
            task = asyncio.create_task(self._read(scope, running, live))
            self._tails[live] = task
            task.add_done_callback(lambda _: self._over(running.token, live))
        return live

    def left(self, running: Running, live: LiveAnswer) -> None:
        """A listener left: without any, the stream need not be read further."""
        task = self._tails.get(live)
        if task is not None and not live.listeners:
            self._over(running.token, live)
            task.cancel()

    async def close(self) -> None:
        """Stop reading."""
        tasks = list(self._tails.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, token: str, live: LiveAnswer) -> None:
        live.close("lost")  # unless its end has come
        self._tails.pop(live, None)
        if self._lives.get(token) is live:  # a follower may have come before its leader had begun
            del self._lives[token]

    async def _read(self, scope: str, running: Running, live: LiveAnswer) -> None:
        cipher = self._tools.keyring.stream_cipher(scope, running.slot.name, running.token)
        place, heard_at = 0, self._tools.clock()
        while live.end is None:
            found = await self._next(running, place)
            if isinstance(found, StoreTrouble):
                if not place or self._tools.clock() - heard_at >= self._tools.rules.patience_seconds:
                    return  # it may be tried elsewhere, or there is no hope
                await asyncio.sleep(_RETRY_TAIL_SECONDS)
                continue
            heard_at = self._tools.clock()
            if not found.records and not found.alive:
                return
            for record in found.records:
                place += 1
                if not self._hear(live, cipher, place, record):
                    return

    async def _next(self, running: Running, after: int) -> Tail | StoreTrouble:
        rules = self._tools.rules
        seconds = rules.tail_seconds if after else rules.first_tail_seconds
        return await self._tools.guard.ask(
            lambda store: store.tail(running, self._follower, after, round(seconds * 1000)),
            seconds + _ANSWER_SECONDS,
        )

    def _hear(self, live: LiveAnswer, cipher: StreamCipher, place: int, record: bytes) -> bool:
        """Take a record; False when none is to come after it."""
        try:
            plain = cipher.open_record(place, record)
        except EntryUnreadableError:
            self._tools.counters.add("unreadable")
            return False
        value = orjson.loads(plain)
        if isinstance(value, dict):
            live.push(value)
            return True
        live.close("complete" if plain == END_RECORD else "lost")
        return False
