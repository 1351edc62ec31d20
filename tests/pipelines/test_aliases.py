"""Aliases through the real Pipelines server behind a real Open WebUI, whose own filter function is off."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from deploy.client import OpenWebUI
from deploy.errors import ServerError
from harness.chat_bodies import HELLO, IMAGE, TOOL, ask, asked_for
from harness.fixtures_pipelines import FILTER
from harness.ollama_node import Model, OllamaNode
from local.pipelines import RunningPipelines
from local.processes import free_port

Json = dict[str, Any]

LONG = [{"role": "user", "content": "word " * 8192}]

SetValves = Callable[..., None]


@pytest.fixture(params=["admin", "student"])
def user(request: pytest.FixtureRequest) -> OpenWebUI:
    """Both kinds of users, one after the other."""
    api: OpenWebUI = request.getfixturevalue(request.param)
    return api


@pytest.fixture
def set_valves(pipelines: RunningPipelines) -> Iterator[SetValves]:
    """Change valves of the filter for one test."""
    api = pipelines.api()
    before = api.valves(FILTER)

    def change(**valves: Any) -> None:
        api.post(f"/{FILTER}/valves/update", before | valves)

    yield change
    change()
    api.close()


def test_alias_is_answered(user: OpenWebUI, node: OllamaNode) -> None:
    """Would catch a filter that Open WebUI does not call, or whose model it does not go on with."""
    answer = ask(user, "gpt-4o")
    assert answer["choices"][0]["message"]["content"] == "You said: hello"
    assert asked_for(node) == "llama3:70b-instruct-q8_0"


def test_the_filter_decides_and_not_the_row(user: OpenWebUI, node: OllamaNode, set_valves: SetValves) -> None:
    """Would catch tests here that pass because the alias's row names the same model as the filter."""
    set_valves(aliases="gpt-4o = llama3:8b")
    ask(user, "gpt-4o")
    assert asked_for(node) == "llama3:8b"


def test_stream(user: OpenWebUI, node: OllamaNode) -> None:
    """Would catch an alias that is answered whole only."""
    url, body = f"{user.url}/api/chat/completions", {"model": "gpt-4", "messages": IMAGE, "stream": True}
    headers = {"Authorization": f"Bearer {user.key}"}
    with requests.post(url, json=body, headers=headers, stream=True, timeout=60) as response:
        assert response.ok
        data = [line.removeprefix(b"data: ") for line in response.iter_lines() if line.startswith(b"data: ")]
    chunks = [json.loads(line) for line in data if line != b"[DONE]"]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices")]
    assert "".join(pieces) == "You said: what is this? (1 images)"
    assert len(pieces) > 2
    assert asked_for(node) == "llava:13b"


def test_next_candidate_answers_when_the_first_is_missing(user: OpenWebUI, node: OllamaNode) -> None:
    """Would catch a filter that does not look at the nodes of `ollama_urls`."""
    ask(user, "gpt-4")
    assert asked_for(node) == "llama3:70b-instruct-q4_K_M"


@pytest.mark.parametrize(
    ("request_of", "model"),
    [
        ({"messages": IMAGE}, "llava:13b"),
        ({"tools": [TOOL]}, "qwen2.5:32b"),
        ({"messages": LONG}, "llama3:70b-instruct-q8_0"),
    ],
    ids=["vision", "tools", "context"],
)
def test_condition_chooses_the_row(user: OpenWebUI, node: OllamaNode, request_of: Json, model: str) -> None:
    """Would catch a fact of the request that is not in the copy that the Pipelines server gets."""
    ask(user, "gpt-4", **request_of)
    assert asked_for(node) == model


def test_name_that_is_no_alias_passes_through(admin: OpenWebUI, node: OllamaNode) -> None:
    """Would catch a filter that touches requests which are none of its business."""
    ask(admin, "private:1b", params={"temperature": 0.25})
    body = node.requests[-1].body
    assert body is not None
    assert (body["model"], body["options"]["temperature"]) == ("private:1b", 0.25)


def test_unlisted_name_keeps_open_webuis_error(user: OpenWebUI) -> None:
    """Would catch a pack that answers names that nobody published."""
    with pytest.raises(ServerError) as refused:
        ask(user, "gpt-5")
    assert (refused.value.status, refused.value.detail) == (400, "Model not found")


def test_model_that_only_open_webui_knows_answers(
    user: OpenWebUI, node: OllamaNode, set_valves: SetValves
) -> None:
    """Would catch a filter that refuses a model for not being on the nodes that it was told of."""
    with OllamaNode([Model("other:1b")]) as other:
        set_valves(aliases="gpt-4 = llama3:8b, llava:13b", ollama_urls=other.url)
        ask(user, "gpt-4")
    assert asked_for(node) == "llama3:8b"


def test_alias_without_an_installed_model(
    user: OpenWebUI, pipelines: RunningPipelines, node: OllamaNode, set_valves: SetValves
) -> None:
    """Would catch a bare "Internal Server Error" where Open WebUI itself says what is wrong."""
    set_valves(aliases="gpt-4 = mixtral:8x7b")
    before = len(node.requests)
    with pytest.raises(ServerError) as refused:
        ask(user, "gpt-4")
    assert (refused.value.status, refused.value.detail) == (400, "Model not found")
    assert len(node.requests) == before
    assert "alias 'gpt-4' can answer: mixtral:8x7b is not installed" in pipelines.log.read_text()


def test_model_without_a_grant_is_refused(
    admin: OpenWebUI, student: OpenWebUI, node: OllamaNode, set_valves: SetValves
) -> None:
    """Would catch a table that lets a plain user reach a model that nobody granted."""
    set_valves(aliases="gpt-4 = private:1b")
    ask(admin, "gpt-4")
    assert asked_for(node) == "private:1b"
    with pytest.raises(ServerError) as refused:
        ask(student, "gpt-4")
    assert (refused.value.status, refused.value.detail) == (400, "Model not found")


def test_chat_goes_on_when_no_node_answers_the_filter(
    user: OpenWebUI, node: OllamaNode, set_valves: SetValves
) -> None:
    """Would catch a filter that cannot look at its nodes and fails the chat for it."""
    set_valves(aliases="gpt-4 = llama3:8b, llava:13b", ollama_urls=f"http://127.0.0.1:{free_port()}")
    ask(user, "gpt-4")
    assert asked_for(node) == "llama3:8b"


def test_settings_of_the_alias_row(admin: OpenWebUI, node: OllamaNode) -> None:
    """Would catch lost parameters of `gpt-4`, and shows what is lost: Open WebUI hides its system prompt."""
    row = admin.model_rows()["gpt-4"]
    params = {"system": "Answer as {{USER_NAME}} would.", "temperature": 0.125}
    admin.post("/api/v1/models/model/update", row | {"params": params})
    prompts = []
    try:
        for messages, model in ((HELLO, "llama3:70b-instruct-q4_K_M"), (IMAGE, "llava:13b")):
            ask(admin, "gpt-4", messages)
            body = node.requests[-1].body
            assert body is not None
            assert (body["model"], body["options"]["temperature"]) == (model, 0.125)
            prompts.append([item["content"] for item in body["messages"] if item["role"] == "system"])
    finally:
        admin.post("/api/v1/models/model/update", row)
    assert prompts == [["Answer as Admin would."], []]


@pytest.fixture
def page(admin: OpenWebUI, pipelines: RunningPipelines) -> dict[str, str]:
    """The parameter by which Open WebUI's page of pipelines names the server."""
    listed = {server["url"]: server["idx"] for server in admin.get("/api/v1/pipelines/list")["data"]}
    return {"urlIdx": str(listed[pipelines.url])}


def test_admin_page_saves_the_valves_as_they_come(
    admin: OpenWebUI, page: dict[str, str], set_valves: SetValves
) -> None:
    """Would catch valves that Open WebUI's page cannot save: it sends null for an empty text."""
    set_valves()  # restored at the end
    path = f"/api/v1/pipelines/{FILTER}/valves"
    valves = admin.get(path, **page)
    spec = admin.get(f"{path}/spec", **page)
    assert all(form["description"] for form in spec["properties"].values())
    saved = admin.post(f"{path}/update", valves | {"aliases": None, "ollama_urls": None}, **page)
    assert saved == valves | {"aliases": "", "ollama_urls": ""}


def test_admin_page_is_refused_a_bad_table(
    admin: OpenWebUI, page: dict[str, str], pipelines: RunningPipelines
) -> None:
    """Would catch a bad table that is stored, or a reason that is nowhere: Open WebUI does not pass it on."""
    path = f"/api/v1/pipelines/{FILTER}/valves"
    before = admin.get(path, **page)
    with pytest.raises(ServerError) as refused:
        admin.post(f"{path}/update", before | {"aliases": "gpt-4 = llama3:8b llama3:70b"}, **page)
    assert refused.value.status == 500
    assert "row 1 ('gpt-4 = llama3:8b llama3:70b'): " in pipelines.log.read_text()
    assert admin.get(path, **page) == before
