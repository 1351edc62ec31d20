"""Chats as people have them in Open WebUI, played over real HTTP. Times are those of the running loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from bench.routing.prompts import Message, question, system_message, title_request
from harness.virtual_chats import Chat
from ollama_pack.errors import PackError

TICK = 0.2  # seconds between two looks at how late the loop is


@dataclass(frozen=True)
class Call:
    """One request, and for whom."""

    user: str
    chat: str
    model: str
    messages: Sequence[Message]
    background: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As OpenAI's API takes it, with Ollama's options."""
        options = {"options": dict(self.options)} if self.options else {}
        return {"model": self.model, "messages": list(self.messages), "stream": True, **options}


class Way(Protocol):
    """Brings a call to a node, and the chunks of the answer back."""

    def ask(self, call: Call) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks; closing the iterator ends the generation."""


@dataclass
class Asked:
    """What came of one request.

    Attributes:
        user: who asked.
        background: a title call.
        came: when, in seconds since the chats began.
        waited: seconds until the first token; None: none came.
        error: the type of what went wrong; empty: nothing.
        plain: what it said.
    """

    user: str
    background: bool
    came: float
    waited: float | None = None
    error: str = ""
    plain: str = ""


@dataclass
class Played:
    """What came of a run: its requests in the order of asking, and how late the client's loop was."""

    asked: list[Asked] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Driver:
    """Plays chats. A turn begins when the one before has been read; after a failure the person gives up.

    Args:
        way: brings calls to nodes.
        titles: after the first answer of a chat a title is asked for.
    """

    def __init__(self, way: Way, *, titles: bool = True) -> None:
        self.played = Played()
        self._way = way
        self._titles = titles
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    async def play(self, chats: Iterable[Chat], beside: Callable[[], Coroutine[Any, Any, None]]) -> Played:
        """Play all chats to their ends.

        Args:
            chats: what is said, and when.
            beside: what else happens meanwhile; it is cancelled when the chats are over.
        """
        others = [asyncio.create_task(beside()), asyncio.create_task(self._watch_lateness())]
        async with asyncio.TaskGroup() as group:
            for chat in chats:
                group.create_task(self._play_chat(chat, group))
        for other in others:
            other.cancel()
        for ended in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        self.played.seconds = self._loop.time() - self._began
        return self.played

    async def _play_chat(self, chat: Chat, group: asyncio.TaskGroup) -> None:
        await asyncio.sleep(self._began + chat.begins - self._loop.time())
        dice = Random(chat.number)
        messages = [system_message(chat.model)]
        for number, turn in enumerate(chat.turns):
            messages.append(question(dice, turn.said, turn.answer))
            answer = await self._ask(Call(chat.user, str(chat.number), chat.model, tuple(messages)))
            if answer is None:
                return
            messages.append({"role": "assistant", "content": answer})
            if number == 0 and self._titles:
                asked = title_request(messages)
                title = Call(chat.user, str(chat.number), chat.model, asked, background=True)
                group.create_task(self._ask(title))
            if number + 1 < len(chat.turns):
                await asyncio.sleep(turn.pause)

    async def _ask(self, call: Call) -> str | None:
        """The text of an answer; None when it failed."""
        came, text = self._loop.time(), ""
        asked = Asked(call.user, call.background, came - self._began)
        self.played.asked.append(asked)
        try:
            async with aclosing(self._way.ask(call)) as chunks:
                async for chunk in chunks:
                    for choice in chunk["choices"]:
                        said = choice["delta"].get("content", "")
                        if said and asked.waited is None:
                            asked.waited = self._loop.time() - came
                        text += said
        except PackError as error:
            asked.error, asked.plain = type(error).__name__, str(error)
            return None
        return text

    async def _watch_lateness(self) -> None:
        while True:
            due = self._loop.time() + TICK
            await asyncio.sleep(TICK)
            self.played.late.append(self._loop.time() - due)
