"""`gpu_router` on a real Open WebUI: what is offered, who answers, and what a user sees when nodes fail."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import requests

from deploy.client import OpenWebUI
from harness.chat_bodies import HELLO, IMAGE, PIXEL, TOOL, ask, ask_streaming, said
from harness.dns_server import ServiceDns
from harness.fixtures_routing import LLAMA, RoutedWebUI
from harness.fixtures_webui import upload
from harness.ollama_node import Answer, Fault, OllamaNode

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def fresh(routed: RoutedWebUI) -> Iterator[None]:
    """Nodes that run, without answers lined up by another test."""
    yield
    for node in routed.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
        if node._thread is None:  # noqa: SLF001
            node.start()


@pytest.fixture(params=["admin", "student"])
def user(request: pytest.FixtureRequest, routed: RoutedWebUI) -> OpenWebUI:
    """Both kinds of users, one after the other."""
    api: OpenWebUI = getattr(routed, request.param)
    return api


def name_of(routed: RoutedWebUI, user: OpenWebUI) -> str:
    return "admin" if user is routed.admin else "student"


def stream(api: OpenWebUI, model: str, **more: Any) -> list[Json]:
    """The chunks of a streamed answer, without the mark of its end, which must be there."""
    with ask_streaming(api, model, **more) as answer:
        lines = [line.removeprefix(b"data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_models_and_aliases_are_offered_once(routed: RoutedWebUI) -> None:
    """Would catch a model listed once for each node, a missing one, or aliases of models that nobody has."""
    offered = [model for model in routed.admin.models(refresh=True) if model.startswith("gpu_router.")]
    names = [name.removeprefix("gpu_router.") for name in offered]
    assert sorted(names) == ["gpt-4", "gpt-4-tools", "gpt-admin", "llama3:8b", "llava:13b", "qwen2.5:32b"]


def test_a_plain_user_sees_what_is_published(routed: RoutedWebUI) -> None:
    """Would catch aliases that plain users cannot choose, or admins' models that they can."""
    seen = set(routed.student.models())
    assert {"gpt-4", "gpt-4-tools"} <= seen
    assert not seen & {"gpt-admin", "gpu_router.gpt-admin", "gpu_router.llama3:8b"}


def test_the_picker_shows_an_alias_once(routed: RoutedWebUI) -> None:
    """Would catch `gpt-4` twice in everybody's picker: the alias, and the router's model behind it."""
    models = routed.admin.models()
    assert models["gpu_router.gpt-4"]["info"]["meta"]["hidden"] is True
    assert not models["gpt-4"]["info"]["meta"].get("hidden")


def test_an_alias_is_answered(user: OpenWebUI) -> None:
    """Would catch an alias that does not reach the nodes, or an answer that does not say whose it is."""
    answer = ask(user, "gpt-4")
    assert answer["choices"][0]["message"]["content"] == "You said: hello"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["ollama_pack"]["node"] in {"gpu0", "gpu1"}
    assert answer["ollama_pack"]["reason"]
    assert (answer["model"], answer["ollama_pack"]["model"]) == ("gpt-4", "llama3:8b")


def test_an_alias_is_streamed(user: OpenWebUI) -> None:
    """Would catch chunks out of form, a second finish reason, or the mark in the wrong place."""
    chunks = stream(user, "gpt-4")
    assert said(chunks) == "You said: hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert ["ollama_pack" in chunk for chunk in chunks] == [False, False, False, True]


def test_the_openai_client_streams(routed: RoutedWebUI, user: OpenWebUI) -> None:
    """Would catch chunks that OpenAI's own client does not understand, usage included."""
    with openai.OpenAI(base_url=f"{routed.webui.url}/api", api_key=user.key) as client:
        chunks = list(
            client.chat.completions.create(
                model="gpt-4",
                messages=[{"role": "user", "content": "hello"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == "You said: hello"
    )
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices


def test_conditions_hold(routed: RoutedWebUI, user: OpenWebUI) -> None:
    """Would catch a picture that goes to a model which cannot see it."""
    before = len(routed.chats())
    ask(user, "gpt-4", IMAGE)
    asked = routed.nodes[1].requests[-1].body or {}
    assert asked["model"] == "llava:13b"
    assert asked["messages"][0]["images"] == [PIXEL]
    assert len(routed.chats()) == before + 1


def test_tools_reach_a_model_that_has_them(routed: RoutedWebUI, user: OpenWebUI) -> None:
    """Would catch tools that are lost on the way: the client's own."""
    ask(user, "gpt-4-tools", tools=[TOOL])
    assert (routed.nodes[0].requests[-1].body or {})["tools"][0]["function"]["name"] == "clock"


def test_an_admin_alias_is_not_for_everybody(routed: RoutedWebUI) -> None:
    """Would catch an audience without effect, by the alias's name and by the router's."""
    assert ask(routed.admin, "gpt-admin")["choices"]
    for name in ("gpt-admin", "gpu_router.gpt-admin", "gpu_router.llama3:8b"):
        with pytest.raises(Exception, match="Model not found"):
            ask(routed.student, name)


def test_a_dead_node_is_not_noticed(routed: RoutedWebUI, user: OpenWebUI) -> None:
    """Would catch a user who sees an error because one of two nodes was switched off."""
    ask(user, "gpt-4")
    for off in routed.nodes:
        off.stop()
        try:
            assert said(stream(user, "gpt-4")) == "You said: hello"
            assert ask(user, "gpt-4")["choices"][0]["message"]["content"] == "You said: hello"
        finally:
            off.start()


def test_a_broken_answer_says_so(routed: RoutedWebUI, user: OpenWebUI) -> None:
    """Would catch an answer that just ends, or goes on in another model's words."""
    for node in routed.nodes:
        node.enqueue(Answer(["Once ", "upon "], hangs_up=True))
    chunks = stream(user, "gpt-4")
    assert said(chunks) == "Once upon "
    for_whom = {"admin": "failed in the middle of this answer", "student": "The answer broke off"}
    assert for_whom[name_of(routed, user)] in chunks[-1]["error"]["message"]
    assert "127.0.0.1" not in chunks[-1]["error"]["message"]


def test_errors_say_what_to_do(routed: RoutedWebUI, user: OpenWebUI) -> None:
    """Would catch errors without a sentence, or with a node that plain users can do nothing about."""
    for node in routed.nodes:
        node.enqueue(*[Answer(refusal=(400, "this is too long"))] * 2)
    for streamed in (False, True):
        answer = requests.post(
            f"{routed.webui.url}/api/chat/completions",
            json={"model": "gpt-4", "messages": HELLO, "stream": streamed},
            headers={"Authorization": f"Bearer {user.key}"},
            timeout=60,
        )
        error = answer.json()["error"]
        assert answer.status_code == error["status"] == 400
        assert error["detail"] == error["message"]
        assert error["message"].endswith("request: this is too long")
        assert ("gpu" in error["message"]) == (name_of(routed, user) == "admin")
        assert "127.0.0.1" not in error["message"]


def test_a_client_that_leaves_frees_the_node(routed: RoutedWebUI, user: OpenWebUI) -> None:
    """Would catch generation that goes on for nobody."""
    for node in routed.nodes:
        node.enqueue(Answer([f"word{number} " for number in range(2000)], pause=0.02))
    body = {"model": "gpt-4", "messages": HELLO, "stream": True}
    before = [len(node.requests) for node in routed.nodes]
    with requests.post(
        f"{routed.webui.url}/api/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {user.key}"},
        stream=True,
        timeout=60,
    ) as answer:
        next(answer.iter_lines())
    (asked,) = [node for node, count in zip(routed.nodes, before, strict=True) if len(node.requests) > count]
    assert asked.requests[-1].left.wait(10)


def test_a_row_s_settings_reach_the_node(routed: RoutedWebUI) -> None:
    """Would catch a context that an admin sets on a model and Open WebUI hands to no pipe."""
    form = {
        "id": "long-context",
        "name": "Long context",
        "base_model_id": "gpu_router.llama3:8b",
        "params": {"num_ctx": 16384, "temperature": 0.3, "system": "Be brief."},
        "meta": {},
        "access_grants": [],
        "is_active": True,
    }
    routed.admin.post("/api/v1/models/create", form)
    try:
        routed.admin.models(refresh=True)
        ask(routed.admin, "long-context")
        body = routed.chats()
    finally:
        routed.admin.post("/api/v1/models/model/delete", {"id": "long-context"})
    (asked,) = [chat for chat in body if "Be brief." in str(chat)]
    assert asked["options"] == {"num_ctx": 16384, "temperature": 0.3}


def test_new_settings_break_no_answer(routed: RoutedWebUI) -> None:
    """Would catch answers that are cut off when an admin saves a valve."""
    for node in routed.nodes:
        node.enqueue(Answer([f"word{number} " for number in range(60)], pause=0.03))
    found: list[list[Json]] = []
    chat = threading.Thread(target=lambda: found.append(stream(routed.student, "gpt-4")))
    before = len(routed.chats())
    chat.start()
    while len(routed.chats()) == before:
        threading.Event().wait(0.02)
    valves = routed.admin.valves("functions", "gpu_router")
    routed.admin.post("/api/v1/functions/id/gpu_router/valves/update", valves | {"max_queue": 5})
    for node in routed.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - see `fresh`
    assert ask(routed.student, "gpt-4")["choices"][0]["message"]["content"] == "You said: hello"
    chat.join()
    assert said(found[0]).endswith("word59 ")
    assert upload(routed.webui, str(routed.pack_yaml)).returncode == 0


def test_an_update_loses_no_model_where_nodes_are_slow_to_answer(routed: RoutedWebUI) -> None:
    """Would catch "Model not found" while new code of the router looks at its nodes for the first time."""
    before = routed.admin.models(refresh=True)
    function = routed.admin.get("/api/v1/functions/id/gpu_router")
    kept = {name: function[name] for name in ("id", "name", "content", "meta")}
    for node in routed.nodes:
        node.command(Fault("slow", path="/api/tags", seconds=4.0))
    try:
        other = kept | {"content": kept["content"] + "\n# newer\n"}
        routed.admin.post("/api/v1/functions/id/gpu_router/update", other)
        assert set(routed.admin.models(refresh=True)) == set(before)
        assert ask(routed.student, "gpt-4")["choices"][0]["message"]["content"] == "You said: hello"
    finally:
        for node in routed.nodes:
            node.clear_faults()
        routed.admin.post("/api/v1/functions/id/gpu_router/update", kept)


def test_models_come_and_go_with_the_nodes(routed: RoutedWebUI) -> None:
    """Would catch a picker that shows what was there when the server started."""
    node: OllamaNode = routed.nodes[0]
    node.models["new:1b"] = type(LLAMA)("new:1b")
    try:
        pause = threading.Event()
        while "gpu_router.new:1b" not in routed.admin.models(refresh=True):
            pause.wait(0.2)
    finally:
        del node.models["new:1b"]


def test_secrets_are_not_printed(routed: RoutedWebUI) -> None:
    """Would catch a node's key in what upload.py prints, which ends up in CI logs."""
    text = routed.pack_yaml.read_text().replace("node-secret", "other-secret")
    changed = routed.pack_yaml.with_name("changed.yaml")
    changed.write_text(text)
    shown = upload(routed.webui, str(changed), "--dry-run")
    assert shown.returncode == 0
    assert "set valves of gpu_router" in shown.stdout
    assert "secret" not in shown.stdout + shown.stderr


def test_a_key_reaches_its_node_only(routed: RoutedWebUI) -> None:
    """Would catch a key that is not sent, or sent to another node."""
    routed.admin.models(refresh=True)
    ask(routed.admin, "gpu_router.llava:13b")
    assert routed.nodes[1].requests[-1].headers["Authorization"] == "Bearer node-secret"
    ask(routed.admin, "gpu_router.qwen2.5:32b")
    assert "Authorization" not in routed.nodes[0].requests[-1].headers


def test_nodes_that_dns_names(routed: RoutedWebUI) -> None:
    """Would catch a scaled service whose new server gets no chat, or whose removed one costs a chat."""
    path = "/api/v1/functions/id/gpu_router/valves"
    valves = routed.admin.get(path)
    ports = [urlsplit(node.url).port or 0 for node in routed.nodes]
    with ServiceDns() as dns:
        dns.servers = [("localhost", ports[0])]
        rows = f"pool {dns.address} slots=2"
        routed.admin.post(f"{path}/update", {**valves, "nodes": rows, "probe_seconds": 0.5})
        try:
            assert ask(routed.admin, "gpt-4")["ollama_pack"]["node"] == "pool-localhost"
            dns.servers = [("localhost", ports[1])]
            before = len(routed.nodes[1].requests)
            deadline = time.monotonic() + 10
            while not any(one.path == "/api/chat" for one in routed.nodes[1].requests[before:]):
                ask(routed.admin, "gpt-4")
                assert time.monotonic() < deadline, "the new server got no chat within 10 s"
        finally:
            routed.admin.post(f"{path}/update", valves)
    assert ask(routed.admin, "gpt-4")["ollama_pack"]["node"] in {"gpu0", "gpu1"}
