"""Open WebUI's own chat converters, in a process of their own: importing Open WebUI has effects everywhere.

`message` is Anthropic's as the gateway has it, which stands on Open WebUI's converters.

    with Converters(scratch) as theirs:
        theirs.request({"model": "a", "messages": [...]})   # a chat body for Ollama
        theirs.answer({"message": {...}, "done": True})     # a chat.completion
        theirs.stream([{"message": {...}}, ...])            # the chunks
    theirs.message([{"choices": [...]}, ...])           # Anthropic's message, and the events of it

Each gives what the converter gives, or {"raised": "KeyError"}.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

SETTINGS = {
    "WEBUI_SECRET_KEY": "converter-tests",
    "FROM_INIT_PY": "true",
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "ollama",
    "ENABLE_DB_MIGRATIONS": "false",
    "GLOBAL_LOG_LEVEL": "CRITICAL",
}
# Reads a line of JSON [what, argument], and writes one for each. What Open WebUI prints goes elsewhere.
SERVER = """
import asyncio, json, os, sys, types
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from open_webui.utils.payload import convert_payload_openai_to_ollama
from open_webui.utils.response import (
    convert_response_ollama_to_openai, convert_streaming_response_ollama_to_openai
)
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.webui.anthropic import anthropic_answer, anthropic_events

async def stream(lines):
    async def body():
        for line in lines:
            yield json.dumps(line)
    sent = convert_streaming_response_ollama_to_openai(types.SimpleNamespace(body_iterator=body()))
    texts = [text.removeprefix("data: ").strip() async for text in sent]
    return [json.loads(text) for text in texts if text != "[DONE]"]

async def message(chunks):
    async def coming():
        for chunk in chunks:
            yield dict(chunk)
    events = [text.partition("data: ")[2] async for text in anthropic_events(coming(), "m")]
    return [anthropic_answer(completion_of(chunks), "m"), [json.loads(text) for text in events]]

convert = {
    "message": lambda chunks: asyncio.run(message(chunks)),
    "request": convert_payload_openai_to_ollama,
    "answer": convert_response_ollama_to_openai,
    "stream": lambda lines: asyncio.run(stream(lines)),
}
for line in sys.stdin:
    what, argument = json.loads(line)
    try:
        answer = convert[what](argument)
    except Exception as error:
        answer = {"raised": type(error).__name__}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Converters:
    """The process; starting it takes seconds, a call less than a millisecond."""

    def __init__(self, scratch: Path) -> None:
        """`scratch`: an empty folder for what Open WebUI writes when it is imported."""
        self._scratch = scratch

    def __enter__(self) -> Self:
        """Start it."""
        data = self._scratch / "data"
        data.mkdir()
        folders = {"DATA_DIR": str(data), "STATIC_DIR": str(self._scratch / "static")}
        self._log = (self._scratch / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **SETTINGS, **folders},
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()
        self._log.close()

    def request(self, body: dict[str, Any]) -> dict[str, Any]:
        """What `convert_payload_openai_to_ollama` makes of a body."""
        return dict(self._ask("request", body))

    def answer(self, answer: dict[str, Any]) -> dict[str, Any]:
        """What `convert_response_ollama_to_openai` makes of an answer."""
        return dict(self._ask("answer", answer))

    def stream(self, lines: Sequence[dict[str, Any]]) -> Any:
        """What `convert_streaming_response_ollama_to_openai` makes of lines."""
        return self._ask("stream", list(lines))

    def message(self, chunks: Sequence[dict[str, Any]]) -> Any:
        """What the gateway makes of chunks for Anthropic's clients: a message, and a stream's events."""
        return self._ask("message", list(chunks))

    def _ask(self, what: str, argument: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([what, argument]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._scratch / "log").read_text()[-2000:]
        return json.loads(answer)
