"""The response cache on the real Pipelines server behind a real Open WebUI."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.client import OpenWebUI, Pipelines
from harness.chat_bodies import said
from harness.fixtures_pipelines_router import JSON, chunks_of, until
from harness.fixtures_pipelines_webui import PipedWebUI
from harness.fixtures_webui import upload
from harness.ollama_node import Answer

CACHE = ("response_cache_filter", "response_cache_replay")
CACHED_YAML = """\
pipelines: [gpu_router, response_cache_filter, response_cache_replay]
plugins: [response_cache_filter, response_cache_replay]
cache: {ttl: 600}
"""


@pytest.fixture(scope="module")
def cached(piped: PipedWebUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipedWebUI]:
    """The servers with the cache, which upload.py puts beside the router; without it again afterwards."""
    config = tmp_path_factory.mktemp("cached") / "pack.yaml"
    config.write_text(CACHED_YAML)
    done = upload(piped.webui, str(config), environment=piped.pipelines.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    piped.admin.models(refresh=True)
    yield piped
    api = piped.pipelines.api()
    for name in CACHE:
        api._ask("DELETE", "/pipelines/delete", json={"id": name})  # noqa: SLF001 - an uploader deletes nothing
    api.close()
    piped.admin.models(refresh=True)


@pytest.fixture
def api(cached: PipedWebUI) -> Iterator[Pipelines]:
    """The Pipelines server's API."""
    api = cached.pipelines.api()
    yield api
    api.close()


@pytest.fixture(params=["admin", "student"])
def user(request: pytest.FixtureRequest, cached: PipedWebUI) -> OpenWebUI:
    """Both kinds of users, one after the other."""
    api: OpenWebUI = getattr(cached, request.param)
    return api


def mark(chunks: list[JSON]) -> object:
    """What the last chunk says of the cache."""
    return chunks[-1].get("ollama_pack", {}).get("cache")


def times_asked(cached: PipedWebUI, text: str) -> int:
    """How often a node was asked this."""
    bodies = [request.body or {} for request in cached.chats()]
    return sum(body["messages"][-1]["content"] == text for body in bodies)


def test_upload_brings_the_valves(cached: PipedWebUI, api: Pipelines) -> None:
    """Would catch a section of pack.yaml that does not reach the server, or functions that come as well."""
    assert api.valves("response_cache_filter")["ttl_seconds"] == 600
    assert not set(CACHE) & cached.admin.plugins("functions").keys()


def test_an_answer_is_given_again(cached: PipedWebUI, user: OpenWebUI) -> None:
    """Would catch a cache that is asked for nothing, or that does not say so."""
    text = f"again, {user.key[-8:]}"
    first = chunks_of(cached.ask(user, "gpt-4", text))
    second = chunks_of(cached.ask(user, "gpt-4", text))
    whole = cached.ask(user, "gpt-4", text, stream=False).json()
    assert [said(first), said(second)] == [f"You said: {text}"] * 2
    assert whole["choices"][0]["message"]["content"] == f"You said: {text}"
    assert [mark(first), mark(second), whole["ollama_pack"]["cache"]] == [None, "hit", "hit"]
    assert times_asked(cached, text) == 1


def test_another_user_gets_an_answer_of_his_own(cached: PipedWebUI) -> None:
    """Would catch answers that show one user what another has asked."""
    for user in (cached.admin, cached.student):
        assert mark(chunks_of(cached.ask(user, "gpt-4", "whose is it?"))) is None
    assert times_asked(cached, "whose is it?") == 2


def test_what_is_added_after_the_filter_counts(cached: PipedWebUI) -> None:
    """Would catch an answer from before the system prompt changed, which no filter here is told."""
    row = cached.admin.model_rows()["gpt-4"]
    chunks_of(cached.ask(cached.admin, "gpt-4", "and now?"))
    cached.admin.post("/api/v1/models/model/update", row | {"params": {"system": "Be brief."}})
    try:
        changed = chunks_of(cached.ask(cached.admin, "gpt-4", "and now?"))
    finally:
        cached.admin.post("/api/v1/models/model/update", row)
    assert mark(changed) is None
    assert [message["role"] for message in cached.chats()[-1].body["messages"]] == ["system", "user"]  # type: ignore[index] # a chat has a body
    assert mark(chunks_of(cached.ask(cached.admin, "gpt-4", "and now?"))) == "hit"


def test_one_generation_for_all_who_ask_at_once(cached: PipedWebUI, user: OpenWebUI) -> None:
    """Would catch a node that is asked the same thing twice at the same time."""
    text = f"at once, {user.key[-8:]}"
    for node in cached.nodes:
        node.enqueue(Answer(["one ", "two ", "three"], pause=0.5))
    found: list[list[JSON]] = []
    first = cached.ask(user, "gpt-4", text)
    until(lambda: times_asked(cached, text) == 1)
    asking = [
        threading.Thread(target=lambda: found.append(chunks_of(cached.ask(user, "gpt-4", text))))
        for _ in range(3)
    ]
    for thread in asking:
        thread.start()
    found.append(chunks_of(first))
    for thread in asking:
        thread.join()
    for node in cached.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
    assert [said(chunks) for chunks in found] == ["one two three"] * 4
    assert times_asked(cached, text) == 1


def test_what_is_not_for_the_cache(cached: PipedWebUI, api: Pipelines) -> None:
    """Would catch a temporary chat that is kept after all, tasks that fill the cache, or lost figures."""
    for _ in range(2):
        chunks_of(cached.ask(cached.student, "gpt-4", "between us", chat_id="local:abc"))
        task = {"model": "gpu_router.gpt-4", "prompt": "a smile"}
        cached.admin.post("/api/v1/tasks/emoji/completions", task)
    assert times_asked(cached, "between us") == 2
    chat = {"model": CACHE[1], "messages": [{"role": "user", "content": "hello"}], "stream": False}
    refusal = api.post("/chat/completions", chat)["choices"][0]["message"]["content"]
    assert "is no model to chat with" in refusal
    assert "bypasses/background task 2, bypasses/temporary chat 2" in refusal


def test_regenerating_asks_again(cached: PipedWebUI) -> None:
    """Would catch the button that gives the very same answer again."""
    chunks_of(cached.ask(cached.student, "gpt-4", "another one"))
    again = chunks_of(cached.ask(cached.student, "gpt-4", "another one", regeneration_message_id="m1"))
    assert mark(again) is None
    assert times_asked(cached, "another one") == 2


def test_switched_off(cached: PipedWebUI, api: Pipelines) -> None:
    """Would catch a switch without effect."""
    before = api.valves(CACHE[0])
    api.post(f"/{CACHE[0]}/valves/update", before | {"enabled": False})
    try:
        for _ in range(2):
            chunks_of(cached.ask(cached.student, "gpt-4", "off?"))
    finally:
        api.post(f"/{CACHE[0]}/valves/update", before)
    assert times_asked(cached, "off?") == 2


def test_the_secret_is_the_servers_own(cached: PipedWebUI) -> None:
    """Would catch a secret that others on the machine can read, or that the valves tell everybody."""
    file = Path(cached.pipelines.folder) / CACHE[0] / "secret"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() not in (Path(cached.pipelines.folder) / CACHE[0] / "valves.json").read_text()
