"""The response cache on a real Open WebUI: who gets which answer, and what the model is still asked."""

import base64
import hashlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
import requests

from deploy.client import OpenWebUI
from harness.chat_bodies import TOOL
from harness.fixtures_cache import DIRECT, CachedWebUI, at_once
from harness.ollama_node import Answer, Model, OllamaNode, ToolCall
from local.processes import free_port

Json = dict[str, Any]


@pytest.fixture(params=["admin", "student"])
def user(request: pytest.FixtureRequest, cached: CachedWebUI) -> OpenWebUI:
    """Both kinds of users, one after the other."""
    api: OpenWebUI = getattr(cached, request.param)
    return api


def chat(text: str, model: str = "gpt-4", **more: Any) -> Json:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def ask(api: OpenWebUI, body: Json) -> Json:
    answer: Json = api.post("/api/chat/completions", body)
    return answer


def said(chunks: list[Json]) -> str:
    return "".join(
        chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices")
    )


def marks(chunks: list[Json]) -> list[str]:
    return [chunk["ollama_pack"]["cache"] for chunk in chunks if "cache" in chunk.get("ollama_pack", {})]


@pytest.mark.parametrize(
    "model", ["gpt-4", "private:1b", DIRECT], ids=["router", "alias filter", "connection"]
)
def test_the_second_asker_gets_the_first_answer(cached: CachedWebUI, user: OpenWebUI, model: str) -> None:
    """Would catch a cache that asks the model again, for whichever way there is to a model."""
    first, second = (ask(user, chat("hello", model)) for _ in range(2))
    assert second["choices"] == first["choices"]
    assert second["usage"] == first["usage"]
    assert second["model"] == first["model"]
    assert "cache" not in first.get("ollama_pack", {})
    assert second["ollama_pack"]["cache"] == "hit"
    assert second["ollama_pack"]["age_seconds"] >= 0
    assert len(cached.generations()) == 1


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (True, True)])
def test_streamed_and_not_share_one_answer(cached: CachedWebUI, first: bool, second: bool) -> None:  # noqa: FBT001
    """Would catch a streamed answer that an unstreamed request cannot get, or the other way."""
    cached.node.enqueue(Answer(["Hel", "lo"], thinking=["hm, ", "well"]))
    asked = [
        list(cached.stream(cached.student, chat("hi"))) if streamed else [ask(cached.student, chat("hi"))]
        for streamed in (first, second)
    ]
    content, reasoning = zip(*(told(chunks) for chunks in asked), strict=True)
    assert content == ("Hello", "Hello")
    assert reasoning == ("hm, well", "hm, well")
    assert [chunk["usage"] for chunk in asked[0] if chunk.get("usage")] == [
        chunk["usage"] for chunk in asked[1] if chunk.get("usage")
    ]
    assert marks(asked[1]) == ["hit"]
    assert "ollama_pack" in asked[1][-1]
    assert len(cached.generations()) == 1


def told(chunks: list[Json]) -> tuple[str, str]:
    """What an answer says, and what the model thought before."""
    parts = [
        choice.get("delta") or choice.get("message") or {} for chunk in chunks for choice in chunk["choices"]
    ]
    return tuple("".join(part.get(name) or "" for part in parts) for name in ("content", "reasoning_content"))  # type: ignore[return-value] # two names, two texts


def test_simultaneous_askers_share_one_generation(cached: CachedWebUI, user: OpenWebUI) -> None:
    """Would catch a stampede: every one of a class that is given the same question starts a generation."""
    cached.node.enqueue(Answer(["slow ", "answer"], delay=0.3, pause=0.2))
    streamed = [lambda: said(list(cached.stream(user, chat("all at once"))))] * 3
    whole = [lambda: ask(user, chat("all at once"))["choices"][0]["message"]["content"]] * 3
    assert at_once(*streamed, *whole) == ["slow answer"] * 6
    assert len(cached.generations()) == 1


def test_follower_reads_along(cached: CachedWebUI) -> None:
    """Would catch a follower that sees nothing until the leader's answer is complete."""
    cached.node.enqueue(Answer([f"word{number} " for number in range(100)], pause=0.05))
    leader = cached.stream(cached.student, chat("tell"))
    next(leader)
    follower = cached.stream(cached.student, chat("tell"))
    early = [next(follower) for _ in range(3)]
    assert "word0" in said(early)
    assert said([*early, *follower]) == "".join(f"word{number} " for number in range(100))
    leader.close()
    assert len(cached.generations()) == 1


def test_answer_of_a_fallback_is_not_given_for_the_first_model(cached_file: CachedWebUI) -> None:
    """Would catch an answer of an alias's second model that is given for an hour once the first is back."""
    admin, student = cached_file.admin, cached_file.student
    place = "/api/v1/functions/id/gpu_router/valves"
    before = admin.get(place)
    with OllamaNode([Model("mixtral:8x7b")]) as first:
        rows = f"first {first.url}\n{before['nodes']}"
        admin.post(f"{place}/update", {**before, "nodes": rows})
        try:
            until_answered_by(student, "mixtral:8x7b")
            first.kill()
            fallen = [ask(student, chat("who answers?")) for _ in range(3)]
            assert {answer["ollama_pack"].get("model", "llama3:8b") for answer in fallen} == {"llama3:8b"}
            first.start()
            until_answered_by(student, "mixtral:8x7b")
            assert ask(student, chat("who answers?"))["ollama_pack"]["model"] == "mixtral:8x7b"
            assert ask(student, chat("who answers?"))["ollama_pack"]["cache"] == "hit"
        finally:
            admin.post(f"{place}/update", before)


def until_answered_by(api: OpenWebUI, model: str) -> None:
    """Ask other questions until a model of the alias answers them."""
    deadline = time.monotonic() + 30
    while ask(api, chat(f"{uuid4().hex}?"))["ollama_pack"]["model"] != model:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_figures_about_others_are_for_admins(cached_file: CachedWebUI) -> None:
    """Would catch a share of the prompt that tells a plain user who else has just asked this very message."""
    words = " ".join(f"word{number}" for number in range(500))
    ask(cached_file.student, chat(words))
    told = [ask(api, chat(words))["ollama_pack"]["reason"] for api in (cached_file.other, cached_file.admin)]
    assert re.fullmatch(r"(mixtral:8x7b is not installed · )?\w+ has \S+ in memory", told[0])
    assert "% of the prompt is cached there" in told[1]
    assert "expected" in told[1]


def test_dead_redis_is_shown_and_logged_once(cached_file: CachedWebUI) -> None:
    """Would catch a store that does not answer, and that nobody hears of, or its password in the log."""
    log = cached_file.webui.log
    before = log.read_text()
    cached_file.set_valves(redis_url=f"redis://:hunter2hunter2@127.0.0.1:{free_port()}/0")
    for number in range(6):
        assert "cache" not in ask(cached_file.student, chat(f"{number}?"))["ollama_pack"]
    fault = cached_file.admin.get("/ollama-pack/data")["cache"]["fault"]
    assert "the store is" in fault
    assert "Connect call failed" in fault or "connecting to 127.0.0.1" in fault
    said = log.read_text().removeprefix(before)
    assert said.count("The response cache cannot use its store") == 1
    assert "hunter2" not in said + fault


def test_another_user_is_not_served(cached: CachedWebUI) -> None:
    """Would catch an answer that crosses from one user to another though the scope is `user`."""
    ask(cached.student, chat("my secret"))
    answer = ask(cached.other, chat("my secret"))
    assert "cache" not in answer["ollama_pack"]
    assert len(cached.generations()) == 2


def test_global_scope_is_shared_but_not_what_draws_on_tools(cached_file: CachedWebUI) -> None:
    """Would catch a scope without effect, or private answers in the wide one."""
    cached_file.set_valves(secret="f" * 32, scope="global")
    ask(cached_file.student, chat("shared", DIRECT))
    assert ask(cached_file.other, chat("shared", DIRECT))["ollama_pack"]["cache"] == "hit"
    ask(cached_file.student, chat("shared", DIRECT, tools=[TOOL]))
    assert "ollama_pack" not in ask(cached_file.other, chat("shared", DIRECT, tools=[TOOL]))
    assert len(cached_file.generations()) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.1},
        {"seed": 7},
        {"tools": [TOOL]},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hello "}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_answer_changes_the_key(cached_file: CachedWebUI, change: Json) -> None:
    """Would catch an answer to another question."""
    ask(cached_file.student, chat("hello", DIRECT))
    assert "ollama_pack" not in ask(cached_file.student, chat("hello", DIRECT) | change)
    assert len(cached_file.generations()) == 2


def test_pictures_are_told_apart(cached_file: CachedWebUI) -> None:
    """Would catch two pictures with the same question and one answer; the second is large."""
    for picture, expected in ((b"one", None), (b"two" * 200_000, None), (b"one", "hit")):
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        body = {"model": DIRECT, "messages": [{"role": "user", "content": parts}]}
        assert ask(cached_file.student, body).get("ollama_pack", {}).get("cache") == expected


def test_tool_calls_are_not_kept_and_the_answer_after_them_is(cached: CachedWebUI) -> None:
    """Would catch a client's tool loop that never calls its tool again, or one that the cache breaks."""
    asked = chat("what time is it?", DIRECT, tools=[TOOL])
    for _ in range(2):
        cached.node.enqueue(Answer(tool_calls=[ToolCall("clock", {})]))
        message = ask(cached.student, asked)["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["name"] == "clock"
    assert len(cached.generations()) == 2
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "noon"}
    further = {**asked, "messages": [*asked["messages"], message, result]}
    cached.node.enqueue(Answer(["It is noon."]))
    answers = [ask(cached.student, further) for _ in range(2)]
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["It is noon."] * 2
    assert len(cached.generations()) == 3


def test_errors_are_passed_on_and_not_kept(cached: CachedWebUI, user: OpenWebUI) -> None:
    """Would catch an error that is kept, or one that loses its reason on the way through the cache."""
    for stream in (False, True):
        cached.node.enqueue(Answer(refusal=(400, "the prompt is too long")))
        answer = requests.post(
            f"{cached.webui.url}/api/chat/completions",
            json=chat("too much", DIRECT) | {"stream": stream},
            headers={"Authorization": f"Bearer {user.key}"},
            timeout=30,
        )
        assert answer.status_code == 400
        assert "the prompt is too long" in answer.text
    assert ask(user, chat("too much", DIRECT))["choices"][0]["message"]["content"] == "You said: too much"


def test_answer_that_was_cut_off_is_not_kept(cached: CachedWebUI) -> None:
    """Would catch half an answer that is given again for an hour."""
    cached.node.enqueue(Answer(["half an"], failure="out of memory"))
    assert said(list(cached.stream(cached.student, chat("tell", DIRECT)))) == "half an"
    assert ask(cached.student, chat("tell", DIRECT))["choices"][0]["message"]["content"] == "You said: tell"


def test_leader_that_leaves_does_not_cut_off_the_follower(cached: CachedWebUI) -> None:
    """Would catch a stop button that ends other people's answers."""
    cached.node.enqueue(Answer([f"word{number} " for number in range(40)], pause=0.05))
    leader = cached.stream(cached.student, chat("tell"))
    next(leader)
    got: list[Json] = []
    arrived = threading.Event()

    def follow() -> None:
        for chunk in cached.stream(cached.student, chat("tell")):
            got.append(chunk)
            arrived.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert arrived.wait(10)
    leader.close()
    follower.join(30)
    assert said(got) == "".join(f"word{number} " for number in range(40))
    assert len(cached.generations()) == 1


def test_lone_asker_who_leaves_stops_the_model(cached: CachedWebUI) -> None:
    """Would catch a GPU that works on for nobody, or connections to the node that stay open."""
    cached.node.enqueue(Answer([f"word{number} " for number in range(2000)], pause=0.05))
    leader = cached.stream(cached.student, chat("tell", DIRECT))
    next(leader)
    leader.close()
    assert cached.node.requests[-1].left.wait(15)


def test_user_who_wants_no_cache_gets_none(cached_file: CachedWebUI) -> None:
    """Would catch a switch without effect, or one that keeps the answers of who does not want it."""
    valves = "/api/v1/functions/id/response_cache_filter/valves/user/update"
    cached_file.student.post(valves, {"use_cache": False})
    try:
        for _ in range(2):
            assert "cache" not in ask(cached_file.student, chat("hello"))["ollama_pack"]
    finally:
        cached_file.student.post(valves, {"use_cache": True})
    assert "cache" not in ask(cached_file.student, chat("hello"))["ollama_pack"]
    assert len(cached_file.generations()) == 3


def test_temporary_chat_is_not_kept(cached_file: CachedWebUI) -> None:
    """Would catch answers of chats that promise to be kept nowhere."""
    body = chat("hello", chat_id="temporary:abc", id="m1", parent_id=None)
    for _ in range(2):
        ask(cached_file.student, body)
    assert len(cached_file.generations()) == 2
    assert cached_file.counts()["bypasses/temporary chat"] >= 2


def test_title_is_made_anew(cached_file: CachedWebUI) -> None:
    """Would catch a title that is looked up, or that is asked of the cache's own model."""
    asked = {"model": DIRECT, "messages": [{"role": "user", "content": "hello"}], "chat_id": "c1"}
    cached_file.admin.post("/api/v1/tasks/config/update", task_config(cached_file, on=True))
    try:
        for _ in range(2):
            cached_file.student.post("/api/v1/tasks/title/completions", asked)
    finally:
        cached_file.admin.post("/api/v1/tasks/config/update", task_config(cached_file, on=False))
    assert len(cached_file.generations()) == 2


def task_config(cached: CachedWebUI, *, on: bool) -> Json:
    config: Json = cached.admin.get("/api/v1/tasks/config")
    return config | {"ENABLE_TITLE_GENERATION": on}


def test_only_deterministic_requests_where_the_admin_wants_so(cached_file: CachedWebUI) -> None:
    """Would catch `cache_when` without effect."""
    cached_file.set_valves(secret="d" * 32, cache_when="deterministic")
    for temperature, generations in ((0.7, 2), (0, 3)):
        for _ in range(2):
            ask(cached_file.student, chat("hello", DIRECT, temperature=temperature))
        assert len(cached_file.generations()) == generations


def test_client_may_ask_for_a_new_answer(cached: CachedWebUI) -> None:
    """Would catch an OpenAI client that cannot get past the cache; as regenerate does in a browser."""
    ask(cached.student, chat("hello"))
    cached.node.enqueue(Answer(["Something new"]))
    headers = {"Authorization": f"Bearer {cached.student.key}", "Cache-Control": "no-cache"}
    url = f"{cached.webui.url}/api/chat/completions"
    renewed = requests.post(url, json=chat("hello"), headers=headers, timeout=30).json()
    assert renewed["choices"][0]["message"]["content"] == "Something new"
    assert ask(cached.student, chat("hello"))["choices"] == renewed["choices"]


def test_question_in_other_words_is_answered_where_the_admin_wants_so(cached_file: CachedWebUI) -> None:
    """Would catch a tier that is on by itself, that serves another user, or that a client cannot refuse."""
    first, again = (
        "What is the capital of France?",
        "hi, can you tell me what the capital of France is? thanks",
    )
    answer = ask(cached_file.student, chat(first))
    assert "cache" not in ask(cached_file.student, chat(f"Hey, {first}"))["ollama_pack"]
    cached_file.set_valves(secret="s" * 32, similar="normalised")
    answer = ask(cached_file.student, chat(first))
    url, headers = f"{cached_file.webui.url}/api/chat/completions", {"Cache-Control": "no-similar"}
    headers |= {"Authorization": f"Bearer {cached_file.student.key}"}
    refused = requests.post(url, json=chat(f"Hello! {first}"), headers=headers, timeout=30).json()
    assert "cache" not in refused["ollama_pack"]
    given = ask(cached_file.student, chat(again))
    assert given["choices"] == answer["choices"]
    assert given["ollama_pack"] == {
        "cache": "similar",
        "similarity": 1.0,
        "age_seconds": given["ollama_pack"]["age_seconds"],
    }
    assert "cache" not in ask(cached_file.other, chat(again))["ollama_pack"]
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    asked = {"role": "user", "content": again}
    later = ask(cached_file.student, {"model": "gpt-4", "messages": [*history, asked]})
    assert "cache" not in later["ollama_pack"]


class Embedder(BaseHTTPRequestHandler):
    """An engine of OpenAI's embeddings: texts with the same words in any order are close."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        rows = [{"index": place, "embedding": self.vector(text)} for place, text in enumerate(texts)]
        said = json.dumps({"data": rows, "model": asked["model"]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def vector(self, text: str) -> list[float]:
        found = [0.0] * 256
        for word in re.findall("[a-z0-9]+", text.lower()):
            found[hashlib.sha256(word.encode()).digest()[0]] += 1.0
        return found

    def log_message(self, *_: object) -> None:
        """Nothing."""


def learns_from_others(webui: CachedWebUI, tiers: Callable[[], list[Json]]) -> str:
    """What other sites gave is taken from an admin, counts, and is forgotten at his word; for which key."""
    place = "/ollama-pack/calibration"
    ((key, row),) = webui.admin.get(place)["labels"].items()
    assert sum(row["right"]) + sum(row["wrong"]) == 1
    others: Json = {"right": [900] + [0] * 5}
    given: Json = {"round": 1, "epsilon": 2.0, "shares": 1.0, "labels": {key: others}}
    assert "`wrong`" in webui.admin.post(place, given)["fault"]
    others["wrong"] = [0] * 6

    def shows(pooled: int) -> Json:
        deadline = time.monotonic() + 30
        while (tier := tiers()[0])["pooled"] != pooled:  # what a dashboard shows is up to a second old
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return tier

    for _again in range(2):
        assert webui.admin.post(place, given)["fault"] == ""
    with pytest.raises(Exception, match="401"):
        webui.student.post(place, given)
    assert shows(900)["threshold"] is not None
    assert webui.admin.delete(place)["fault"] == ""
    assert shows(0)["threshold"] is None
    return str(key)


def test_same_meaning_is_served_once_enough_answers_were_compared(cached_file: CachedWebUI) -> None:
    """Would catch a tier that never serves by the server's own embeddings, or that serves untried."""
    place = "/api/v1/retrieval/embedding/update"
    first, again = "Which food is good for cats?", "For cats, which food is good?"
    with ThreadingHTTPServer(("127.0.0.1", 0), Embedder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        config = {"url": url, "key": "none"}
        form = {"RAG_EMBEDDING_ENGINE": "openai", "RAG_EMBEDDING_MODEL": "words", "openai_config": config}
        cached_file.admin.post(place, form)
        try:
            cached_file.set_valves(secret=uuid4().hex, similar="semantic")
            ask(cached_file.student, chat(first, DIRECT))
            assert "ollama_pack" not in ask(cached_file.student, chat(again, DIRECT))

            def tiers() -> list[Json]:
                found: list[Json] = cached_file.admin.get("/ollama-pack/data")["cache"]["similar_tiers"]
                return [tier for tier in found if tier["model"] == DIRECT]

            deadline = time.monotonic() + 30
            while not tiers():  # once a judge has compared the two answers
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert tiers()[0]["judged"] == 1
            assert tiers()[0]["threshold"] is None
            key = learns_from_others(cached_file, tiers)
            kept = next(cached_file.webui.log.parent.rglob("ollama_pack_cache*.sqlite3"))
            for judged, user, threshold in ((3001, "zz", None), (6001, "yy", 0.85)):  # groups without users
                with sqlite3.connect(kept) as file:
                    name = f"judged/{key}/0/right by {user}"
                    file.execute("INSERT OR REPLACE INTO counts VALUES (?, 3000)", (name,))
                cached_file.set_valves(secret=uuid4().hex, similar="semantic")  # another cache, same labels
                deadline = time.monotonic() + 30
                while (tier := tiers()[0])["judged"] != judged:  # what it shows is up to a second old
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                assert tier["threshold"] == threshold  # one user earns nothing for others
            given: list[Json] = []
            for number in range(8):  # one in ten goes to the model all the same
                ask(cached_file.student, chat(f"Which food is good for cat {number}?", DIRECT))
                time.sleep(0.5)  # it is entered after its end, which nothing shows outside
                again = f"For cat {number}, which food is good?"
                given.append(ask(cached_file.student, chat(again, DIRECT)))
            marks = [answer["ollama_pack"] for answer in given if "ollama_pack" in answer]
            assert marks
            assert {mark["cache"] for mark in marks} == {"similar"}
            assert all(0.85 <= mark["similarity"] <= 1 for mark in marks)
        finally:
            server.shutdown()


def test_vectors_of_a_named_model_come_from_the_nodes(cached_file: CachedWebUI) -> None:
    """Would catch an alias that names the embedding model and leads nowhere, or a chat that waits for it."""
    cached_file.set_valves(secret=uuid4().hex, similar="semantic", similar_embedder="gpt-4")
    assert ask(cached_file.student, chat("Which food is good for cats?", DIRECT))["choices"]
    deadline = time.monotonic() + 30
    while not (found := [one for one in cached_file.node.requests if one.path == "/api/embed"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found[0].body is not None
    assert found[0].body["model"] == "llama3:8b"
    cached_file.set_valves(secret=uuid4().hex, similar="semantic", similar_embedder="no-such-model")
    assert ask(cached_file.student, chat("Which food is bad for cats?", DIRECT))["choices"]


def test_nobody_chats_with_the_replay_model(user: OpenWebUI) -> None:
    """Would catch a model in everybody's picker that answers nothing, or a refusal that tells nothing."""
    offered = user.models()
    assert offered["response_cache_replay"]["info"]["meta"]["hidden"] is True
    with pytest.raises(Exception, match="not a chat model"):
        ask(user, chat("hello", "response_cache_replay"))


def test_an_arena_draws_models_and_not_the_cache(cached_file: CachedWebUI) -> None:
    """Would catch arena chats that end with an error: Open WebUI draws from hidden models, too."""
    admin, path = cached_file.admin, "/api/v1/evaluations/config"
    everybody = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]

    def arena(name: str, mode: str, *models: str) -> Json:
        meta = {"model_ids": models, "filter_mode": mode, "access_grants": everybody}
        return {"id": name, "name": name, "meta": meta}

    offered = admin.models().keys() - {"response_cache_replay", "gpt-4"}
    arenas = [
        arena("with", "include", "response_cache_replay", DIRECT),
        arena("without", "exclude", *offered),
        arena("alone", "include", "response_cache_replay"),
    ]
    before = admin.get(path)
    admin.post(path, {"ENABLE_EVALUATION_ARENA_MODELS": True, "EVALUATION_ARENA_MODELS": arenas})
    try:
        admin.models(refresh=True)
        for name, drawn in (("with", DIRECT), ("without", "gpt-4")):
            for number in range(6):
                answer = ask(cached_file.student, chat(f"hello {number % 3}", name))
                assert answer["selected_model_id"] == drawn
                assert answer["choices"][0]["message"]["content"] == f"You said: hello {number % 3}"
        with pytest.raises(Exception, match="not a chat model"):
            ask(cached_file.student, chat("hello", "alone"))
    finally:
        admin.post(path, before)
        admin.models(refresh=True)


def test_chats_go_on_without_the_replay_function(cached_file: CachedWebUI) -> None:
    """Would catch chats that end with an error, or keep waiting, because one of the two files is missing."""

    def asked_until(wanted: str | None) -> bool:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if ask(cached_file.student, chat("hello", DIRECT)).get("ollama_pack", {}).get("cache") == wanted:
                return True
        return False

    toggle = "/api/v1/functions/id/response_cache_replay/toggle"
    assert asked_until("hit")
    cached_file.admin.post(toggle)
    assert asked_until(None)
    assert "response_cache_replay is not installed, or switched off" in cached_file.webui.log.read_text()
    cached_file.admin.post(toggle)
    assert asked_until("hit")
