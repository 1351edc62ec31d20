"""The HTTP engine against a server that runs."""

import asyncio
import io
import wave
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import numpy as np
import pytest

from harness.speech_server import ScriptedSpeechServer, speech_server
from ollama_pack.services.voice_settings import VoiceSettings
from ollama_pack.speech.errors import (
    SpeechServerBusyError,
    SpeechServerError,
    SpeechServerFaultError,
    SpeechServerKeyError,
    SpeechServerRefusedError,
    SpeechServerTimeoutError,
    SpeechServerTooLargeError,
    SpeechServerUnreachableError,
)
from ollama_pack.speech.language import parse_language
from ollama_pack.speech.openai_http import OpenAIHTTPEngine, SpeechServer
from ollama_pack.speech.values import EngineRequest, Heard, SpeechWindow
from ollama_pack.speech.whisper_model import ModelPlaces

WINDOW = SpeechWindow(60.0, np.full(16_000, 0.5, "float32"))
KEY = "sk-very-secret"

Use = Callable[[ScriptedSpeechServer, OpenAIHTTPEngine], Awaitable[Any]]


def with_server(use: Use, **settings: Any) -> Any:
    async def run() -> Any:
        async with speech_server() as server, aiohttp.ClientSession() as session:
            given = {"max_wait_seconds": 0.01, "api_key": KEY, "model": "whisper-x", **settings}
            return await use(server, OpenAIHTTPEngine(SpeechServer(server.url, **given), session))

    return asyncio.run(run())


def failure_of(status: int, body: Any, **settings: Any) -> SpeechServerError:
    async def use(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> SpeechServerError:
        server.say(body, status, Location="/elsewhere")  # not to be followed with the key
        with pytest.raises(SpeechServerError) as caught:
            await engine.transcribe(WINDOW, EngineRequest())
        return caught.value

    error = with_server(use, **settings)
    assert isinstance(error, SpeechServerError)
    assert KEY not in str(error)
    return error


def test_what_is_asked_for() -> None:
    """Would catch a missing field, the key in the wrong place, or audio that is no 16 kHz WAV file."""

    async def use(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> None:
        server.say({"text": "hi"})
        await engine.transcribe(WINDOW, EngineRequest(parse_language("zh-CN"), prompt="Ollama"))
        (call,) = server.calls
        assert call.headers["Authorization"] == f"Bearer {KEY}"
        assert call.field("model") == ["whisper-x"]
        assert call.field("language") == ["zh"]
        assert call.field("prompt") == ["Ollama"]
        assert call.field("response_format") == ["verbose_json"]
        assert call.field("timestamp_granularities[]") == ["segment", "word"]
        with wave.open(io.BytesIO(call.audio)) as audio:
            assert audio.getparams()[:4] == (1, 2, 16_000, 16_000)
            assert set(np.frombuffer(audio.readframes(16_000), "<i2")) == {round(0.5 * 32767)}

    with_server(use)


def test_without_a_key_none_is_sent() -> None:
    """Would catch `Bearer ` with nothing after it, which some servers refuse."""

    async def use(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> None:
        server.say({"text": "hi"})
        await engine.transcribe(WINDOW, EngineRequest())
        assert "Authorization" not in server.calls[0].headers
        assert server.calls[0].field("language") == []

    with_server(use, api_key="")


def test_json_when_verbose_json_is_refused() -> None:
    """Would catch a server without times that cannot be used, and one that is asked in vain each time."""

    async def use(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> list[Heard]:
        server.say({"error": {"message": "response_format 'verbose_json' is not compatible"}}, 400)
        server.say({"text": "one"})
        heard = [await engine.transcribe(WINDOW, EngineRequest()) for _ in range(2)]
        asked = [call.field("response_format") for call in server.calls]
        assert asked == [["verbose_json"], ["json"], ["json"]]
        return heard

    first, second = with_server(use)
    assert first == second
    assert [(found.start, found.end, found.text) for found in first.segments] == [(0.0, 1.0, "one")]


def test_a_busy_server_is_asked_again() -> None:
    """Would catch a long recording lost to a limit of requests a minute."""

    async def use(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> Heard:
        server.say("slow down", 429, Retry_After="0")
        server.say("loading", 503, Retry_After="Fri, 31 Dec 2100 23:59:59 GMT")
        server.say({"text": "at last"})
        return await engine.transcribe(WINDOW, EngineRequest())

    assert with_server(use).segments[0].text == "at last"


def test_a_hiccup_does_not_lose_hours() -> None:
    """Would catch a long recording lost to one bad answer, and a server that never works asked in vain."""

    async def use(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> Heard:
        server.say({"text": "one"})
        server.say("bad gateway", 502)
        for _ in range(5):
            server.say("slow down", 429)
        server.say({"text": "two"})
        await engine.transcribe(WINDOW, EngineRequest())
        return await engine.transcribe(WINDOW, EngineRequest())

    assert with_server(use).segments[0].text == "two"

    async def use_broken(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> int:
        server.say("out of order", 500)
        with pytest.raises(SpeechServerFaultError):
            await engine.transcribe(WINDOW, EngineRequest())
        return len(server.calls)

    assert with_server(use_broken) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, SpeechServerKeyError),
        (403, "no", SpeechServerKeyError),
        (404, {"error": "model 'whisper-x' not found"}, SpeechServerRefusedError),
        (400, {"error": {"message": f"language for {KEY}"}}, SpeechServerRefusedError),
        (413, "too large", SpeechServerTooLargeError),
        (429, "busy", SpeechServerBusyError),
        (500, "oops", SpeechServerFaultError),
        (302, "elsewhere", SpeechServerFaultError),
        (200, "<html>a proxy's page</html>", SpeechServerFaultError),
        (200, {"text": "x" * 5_000_000}, SpeechServerFaultError),
    ],
)
def test_failures_are_typed(status: int, body: Any, kind: type[SpeechServerError]) -> None:
    """Would catch an untyped error, or one that shows the key."""
    error = failure_of(status, body)
    assert type(error) is kind
    assert error.server.endswith("/v1/audio/transcriptions")


def test_messages_say_what_the_server_says() -> None:
    """Would catch a refusal that does not tell why."""
    assert "model 'whisper-x' not found" in str(failure_of(404, {"error": "model 'whisper-x' not found"}))
    assert "region not supported" in str(failure_of(403, {"error": {"message": "region not supported"}}))
    assert isinstance(failure_of(413, ""), SpeechServerTooLargeError)


def test_a_server_that_is_not_there() -> None:
    """Would catch a bare connection error."""

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            for url in ("http://user:pass@127.0.0.1:1", "http://[", "not an address"):
                engine = OpenAIHTTPEngine(SpeechServer(url), session)
                with pytest.raises(SpeechServerUnreachableError) as caught:
                    await engine.transcribe(WINDOW, EngineRequest())
                assert "pass" not in str(caught.value)

    asyncio.run(run())


def test_a_server_that_does_not_answer() -> None:
    """Would catch a transcription that hangs for ever, and one that cannot be stopped."""

    async def use(server: ScriptedSpeechServer, engine: OpenAIHTTPEngine) -> None:
        server.say({"text": "too late"})
        server.hang = asyncio.Event()
        with pytest.raises(SpeechServerTimeoutError, match=r"0\.2 s"):
            await engine.transcribe(WINDOW, EngineRequest())

    with_server(use, answer_seconds=0.2)


def test_a_server_behind_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch Groq or OpenAI out of reach where all else of Open WebUI goes through a proxy."""

    async def run() -> None:
        async with speech_server() as server:
            for name in ("HTTP_PROXY", "http_proxy"):
                monkeypatch.setenv(name, server.url)
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            server.say({"text": "hi"})
            settings = VoiceSettings(engine="openai_http", base_url="http://speech.example/v1")
            async with settings.running_engine(ModelPlaces()) as engine:
                heard = await engine.transcribe(WINDOW, EngineRequest())
            assert heard.segments[0].text == "hi"
            assert server.calls[0].headers["Host"] == "speech.example"

    asyncio.run(run())
