"""A transcription server that answers as it is told to, and keeps what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class SpeechCall:
    """A request that came: its headers, fields (a list, as names may come twice), and the recording."""

    headers: Mapping[str, str]
    fields: list[tuple[str, str]]
    audio: bytes

    def field(self, name: str) -> list[str]:
        """All values of a field."""
        return [value for key, value in self.fields if key == name]


@dataclass
class ScriptedSpeechServer:
    """Answers in turn; the last answer holds for all after it. An answer is (status, body, headers)."""

    answers: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    calls: list[SpeechCall] = field(default_factory=list)
    hang: asyncio.Event | None = None
    url: str = ""

    def say(self, body: Any, status: int = 200, **headers: str) -> None:
        """Add an answer: text as it is, anything else as JSON."""
        self.answers.append((status, body, {key.replace("_", "-"): value for key, value in headers.items()}))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Keep the request and answer."""
        fields, audio = [], b""
        async for part in await request.multipart():
            data = bytes(await part.read(decode=False))  # type: ignore[union-attr] # parts here are not nested
            if part.name == "file":  # type: ignore[union-attr]
                audio = data
            else:
                fields.append((str(part.name), data.decode()))  # type: ignore[union-attr]
        self.calls.append(SpeechCall(request.headers, fields, audio))
        if self.hang:
            await self.hang.wait()
        status, body, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(body, str):
            return web.Response(status=status, text=body, headers=headers)
        return web.json_response(body, status=status, headers=headers)


@asynccontextmanager
async def speech_server() -> AsyncIterator[ScriptedSpeechServer]:
    """The server, running on a free port."""
    server = ScriptedSpeechServer()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/audio/transcriptions", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        if server.hang:
            server.hang.set()
        await runner.cleanup()
