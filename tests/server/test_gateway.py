"""The gateway on a real Open WebUI, in both modes, with the clients that people use."""

import gc
import http.client
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import requests
import yaml
from langchain_ollama import ChatOllama
from langchain_openai import OpenAIEmbeddings
from pydantic import BaseModel

import ollama
from deploy.client import OpenWebUI
from harness.chat_bodies import HELLO, IMAGE, PIXEL, TOOL
from harness.fixtures_cache import share
from harness.fixtures_routing import RoutedWebUI
from harness.ollama_node import Answer, Model, OllamaNode, ToolCall
from ollama_pack.services.gateway_direct import ACCESS_SECONDS

# LangChain's and Ollama's clients leave their connections to the collector of rubbish.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Json = dict[str, Any]
DOCS = Path(__file__).parents[2] / "docs/gateway.md"
GATEWAY = "ollama_pack_gateway"
SAID = "You said: hello"
AT_ONCE = 6  # as many as one node serves (2) and its queue takes (4)


def api_key(api: OpenWebUI) -> str:
    """A key of Open WebUI's own for a user."""
    return str(api.post("/api/v1/auths/api_key", {})["api_key"])


@pytest.fixture(scope="module")
def keys(routed: RoutedWebUI) -> dict[str, str]:
    return {"admin": api_key(routed.admin), "student": api_key(routed.student)}


@pytest.fixture(scope="module", params=["full", "direct"], autouse=True)
def mode(request: pytest.FixtureRequest, routed: RoutedWebUI) -> Iterator[str]:
    """Every test runs in both modes."""
    valves = f"/api/v1/functions/id/{GATEWAY}/valves/update"
    routed.admin.post(valves, {"mode": request.param})
    yield request.param
    routed.admin.post(valves, {"mode": "full"})


@pytest.fixture(autouse=True)
def fresh(routed: RoutedWebUI) -> Iterator[None]:
    yield
    for node in routed.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
    gc.collect()  # while the mark above still holds


@pytest.fixture
def root(routed: RoutedWebUI) -> str:
    return f"{routed.webui.url}/ollama-pack"


@pytest.fixture
def client(root: str, keys: dict[str, str]) -> Iterator[openai.OpenAI]:
    """OpenAI's client, as the plain user."""
    with openai.OpenAI(base_url=f"{root}/v1", api_key=keys["student"], max_retries=0) as client:
        yield client


@pytest.fixture
def claude(root: str, keys: dict[str, str]) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client, which sends the key as `x-api-key`."""
    with anthropic.Anthropic(base_url=root, api_key=keys["student"], max_retries=0) as client:
        yield client


@pytest.fixture
def llama(root: str, keys: dict[str, str]) -> Iterator[ollama.Client]:
    """Ollama's client."""
    client = ollama.Client(root, headers={"Authorization": f"Bearer {keys['student']}"})
    yield client
    client._client.close()  # noqa: SLF001 - this version offers no other way


def prepare(routed: RoutedWebUI, answer: Answer) -> None:
    """Have whichever node is asked next answer so."""
    for node in routed.nodes:
        node.enqueue(answer)


def soon(holds: Callable[[], bool]) -> None:
    """Wait for an event of Open WebUI's, for less time than access is remembered."""
    until = time.monotonic() + ACCESS_SECONDS - 1
    while not holds():
        assert time.monotonic() < until


# --- OpenAI ---


def test_openai_lists_what_names_stand_for(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {"gpt-4", "gpt-4-tools"} <= set(listed)
    assert not set(listed) & {"gpt-admin", "embedding-admin", "llama3:8b", "gpu_router.llama3:8b"}
    assert listed["gpt-4"].model_dump()["ollama_pack"]["stands_for"] == ["llama3:8b", "llava:13b"]
    assert client.models.retrieve("gpt-4").id == "gpt-4"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-admin")


def test_openai_chats(client: openai.OpenAI, mode: str) -> None:
    answer = client.chat.completions.with_raw_response.create(model="gpt-4", messages=HELLO)
    completion = answer.parse()
    assert completion.choices[0].message.content == SAID
    assert completion.model == "gpt-4"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3
    assert completion.model_dump()["ollama_pack"]["model"] == "llama3:8b"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-ollama-pack-mode"] == mode


def test_openai_streams(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="gpt-4", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert {chunk.model for chunk in chunks} == {"gpt-4"}
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_openai_reads_images_tools_and_schemas(client: openai.OpenAI, routed: RoutedWebUI) -> None:
    client.chat.completions.create(model="gpt-4", messages=IMAGE)
    assert routed.chats()[-1]["messages"][-1]["images"] == [PIXEL]  # type: ignore[index]
    prepare(routed, Answer(tool_calls=[ToolCall("clock", {"zone": "UTC"})]))
    called = client.chat.completions.create(model="gpt-4-tools", messages=HELLO, tools=[TOOL])
    calls = called.choices[0].message.tool_calls
    assert calls is not None
    assert json.loads(calls[0].function.arguments) == {"zone": "UTC"}
    assert called.choices[0].finish_reason == "tool_calls"

    class Capital(BaseModel):
        name: str

    for node in routed.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - see `fresh`
    prepare(routed, Answer(text=['{"name": ', '"Rome"}']))
    parsed = client.chat.completions.parse(model="gpt-4", messages=HELLO, response_format=Capital)
    assert parsed.choices[0].message.parsed == Capital(name="Rome")


def test_openai_wildcards_are_answered(client: openai.OpenAI, keys: dict[str, str]) -> None:
    """A name of a wildcard is for those who may use the model behind it, which the student may not."""
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="claude-sonnet-4", messages=HELLO)
    admin = client.with_options(api_key=keys["admin"])
    answer = admin.chat.completions.create(model="claude-sonnet-4", messages=HELLO)
    assert (answer.model, answer.choices[0].message.content) == ("claude-sonnet-4", SAID)


def test_openai_completes_prompts(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="gpt-4", prompt="hello")
    assert whole.choices[0].text == SAID
    chunks = list(client.completions.create(model="gpt-4", prompt="hello", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == SAID


def test_openai_embeds(client: openai.OpenAI, keys: dict[str, str]) -> None:
    made = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert [len(entry.embedding) for entry in made.data] == [8, 8]
    assert made.model == "text-embedding-3-small"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="embedding-admin", input="one")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nomic-embed-text", input="one")
    admin = client.with_options(api_key=keys["admin"])
    assert admin.embeddings.create(model="nomic-embed-text", input="one").data[0].embedding


def test_openai_errors_are_typed(client: openai.OpenAI, routed: RoutedWebUI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-admin", messages=HELLO)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such", messages=HELLO, stream=True)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="gpt-4", messages=[])
    assert bad.value.param == "messages"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()
    prepare(routed, Answer(refusal=(503, "server busy")))
    with pytest.raises(openai.InternalServerError) as busy:
        client.chat.completions.create(model="gpt-4", messages=HELLO, stream=True)
    assert busy.value.response.headers["retry-after"] == "10"


def test_a_stream_that_breaks_off_is_an_error(client: openai.OpenAI, routed: RoutedWebUI) -> None:
    prepare(routed, Answer(text=["half"], failure="out of memory"))
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="gpt-4", messages=HELLO, stream=True))


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_stops_the_generation(
    root: str, keys: dict[str, str], routed: RoutedWebUI, *, streams: bool
) -> None:
    prepare(routed, Answer(text=["word "] * 400, pause=0.05))
    before = {id(request) for node in routed.nodes for request in node.requests}
    body = {"model": "gpt-4", "messages": HELLO, "stream": streams}
    headers = {"Authorization": f"Bearer {keys['student']}"}
    if streams:
        with requests.post(f"{root}/v1/chat/completions", json=body, headers=headers, stream=True) as answer:  # noqa: S113
            next(answer.iter_lines())
    else:
        with pytest.raises(requests.Timeout):
            requests.post(f"{root}/v1/chat/completions", json=body, headers=headers, timeout=1)
    new = [one for node in routed.nodes for one in node.requests if id(one) not in before]
    asked = next(one for one in new if one.path == "/api/chat")
    assert asked.left.wait(5)


def test_a_client_that_leaves_at_the_end_or_in_its_body(
    root: str, keys: dict[str, str], routed: RoutedWebUI, client: openai.OpenAI
) -> None:
    """Would catch a cancelled read of the database, and a trace in the log for each who left."""
    before = routed.webui.log.stat().st_size
    headers = {"Authorization": f"Bearer {keys['student']}"}
    body = {"model": "gpt-4", "messages": HELLO, "stream": True}
    for _ in range(10):
        with requests.post(
            f"{root}/v1/chat/completions", json=body, headers=headers, stream=True, timeout=30
        ) as answer:
            lines = answer.iter_lines(chunk_size=1)
            assert any(b'"finish_reason":"stop"' in line.replace(b" ", b"") for line in lines)
    half = {**headers, "Content-Length": "1000", "Content-Type": "application/json"}
    with closing(http.client.HTTPConnection(root.split("/")[2])) as leaver:
        leaver.request("POST", "/ollama-pack/v1/chat/completions", b"{", half)
    client.chat.completions.create(model="gpt-4", messages=HELLO)
    with routed.webui.log.open("rb") as log:
        log.seek(before)
        said = log.read()
    assert b"Exception terminating connection" not in said
    assert b"ClientDisconnect" not in said


@pytest.mark.parametrize("params", ["x", 5, [None]])
def test_settings_of_the_wrong_type(client: openai.OpenAI, params: object) -> None:
    """Would catch a client's mistake that is reported as a fault of the server."""
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gpt-4", messages=HELLO, extra_body={"params": params})


# --- Anthropic ---


def test_anthropic_chats(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.with_raw_response.create(model="gpt-4", messages=HELLO, max_tokens=20)  # type: ignore[arg-type]
    message = answer.parse()
    assert message.content[0].text == SAID  # type: ignore[union-attr]
    assert (message.model, message.stop_reason, message.usage.output_tokens) == ("gpt-4", "end_turn", 3)
    assert answer.headers["request-id"].startswith("req_")
    assert "gpt-4" in {model.id for model in claude.models.list()}


def test_anthropic_streams(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="gpt-4", messages=HELLO, max_tokens=20) as stream:  # type: ignore[arg-type]
        assert "".join(stream.text_stream) == SAID
        assert stream.get_final_message().stop_reason == "end_turn"


def test_anthropic_counts_tokens(claude: anthropic.Anthropic, routed: RoutedWebUI) -> None:
    """Would catch Claude Code that cannot tell how full its context is, or a name that is closed."""
    before = len(routed.chats())
    messages: Any = [{"role": "user", "content": "x" * 400}]
    tool: Any = {"name": "clock", "description": "y" * 400, "input_schema": {"type": "object"}}
    assert claude.messages.count_tokens(model="gpt-4", messages=messages).input_tokens == 100
    assert claude.messages.count_tokens(model="gpt-4", messages=messages, tools=[tool]).input_tokens > 200
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.count_tokens(model="gpt-admin", messages=messages)
    assert len(routed.chats()) == before


def test_anthropic_uses_tools_and_images(claude: anthropic.Anthropic, routed: RoutedWebUI) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "what is this?"}]
    claude.messages.create(model="gpt-4", messages=[{"role": "user", "content": content}], max_tokens=20)  # type: ignore[typeddict-item]
    assert routed.chats()[-1]["messages"][-1]["images"] == [PIXEL]  # type: ignore[index]
    prepare(routed, Answer(tool_calls=[ToolCall("clock", {"zone": "UTC"})]))
    tool: Any = {"name": "clock", "description": "the time", "input_schema": {"type": "object"}}
    called = claude.messages.create(model="gpt-4-tools", messages=HELLO, max_tokens=20, tools=[tool])  # type: ignore[arg-type]
    assert called.stop_reason == "tool_use"
    assert called.content[0].input == {"zone": "UTC"}  # type: ignore[union-attr]


def test_anthropic_reads_documents_of_text(claude: anthropic.Anthropic, routed: RoutedWebUI) -> None:
    """Would catch an answer about a document that the model has never seen."""

    def ask(source: Json) -> None:
        document = {"type": "document", "title": "Rules", "source": source}
        content: Any = [document, {"type": "text", "text": "sum it up"}]
        claude.messages.create(model="gpt-4", messages=[{"role": "user", "content": content}], max_tokens=9)

    ask({"type": "text", "media_type": "text/plain", "data": "No dogs."})
    said = routed.chats()[-1]["messages"][-1]["content"]  # type: ignore[index]
    assert "Rules" in said
    assert "No dogs." in said
    with pytest.raises(anthropic.BadRequestError, match="document"):
        ask({"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="})


def test_anthropic_results_of_tools_come_whole(claude: anthropic.Anthropic, routed: RoutedWebUI) -> None:
    """Would catch an answer about a result of which the model has seen a part."""
    tool: Any = {"name": "read", "input_schema": {"type": "object"}}
    call = {"type": "tool_use", "id": "t1", "name": "read", "input": {}}

    def ask(*parts: Json) -> None:
        result = {"type": "tool_result", "tool_use_id": "t1", "content": list(parts)}
        turns: Any = [
            *HELLO,
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
        claude.messages.create(model="gpt-4-tools", messages=turns, max_tokens=9, tools=[tool])

    text = {"type": "text", "media_type": "text/plain", "data": "No dogs."}
    found = {
        "type": "search_result",
        "title": "Rules",
        "source": "a",
        "content": [{"type": "text", "text": "yes"}],
    }
    ask({"type": "document", "source": text}, found)
    said = routed.chats()[-1]["messages"][-1]["content"]  # type: ignore[index]
    assert "No dogs." in said
    assert "yes" in said
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    file: Json = {"type": "image", "source": {"type": "file", "file_id": "f1"}}
    for part, kind in (({"type": "document", "source": pdf}, "document"), (file, "file")):
        with pytest.raises(anthropic.BadRequestError, match=kind):
            ask(part)
    turns: Any = [{"role": "user", "content": [file]}]
    with pytest.raises(anthropic.BadRequestError, match="file"):
        claude.messages.create(model="gpt-4", messages=turns, max_tokens=9)


def test_anthropic_thinking_can_be_switched_off(claude: anthropic.Anthropic, routed: RoutedWebUI) -> None:
    """Would catch a model that thinks until `max_tokens` are used up though the client wants no thoughts."""
    disabled: Any = {"messages": HELLO, "max_tokens": 9, "thinking": {"type": "disabled"}}
    claude.messages.create(model="gpt-4", **disabled)
    assert routed.chats()[-1]["think"] is False


def test_anthropic_tools_can_be_switched_off(claude: anthropic.Anthropic, routed: RoutedWebUI) -> None:
    """Would catch tools that are called though the client has said `none`."""
    tool: Any = {"name": "clock", "description": "the time", "input_schema": {"type": "object"}}
    none: Any = {"type": "none"}
    asked: Any = {"messages": HELLO, "max_tokens": 9, "tools": [tool]}
    claude.messages.create(model="gpt-4-tools", **asked)
    claude.messages.create(model="gpt-4-tools", tool_choice=none, **asked)
    assert [bool(chat.get("tools")) for chat in routed.chats()[-2:]] == [True, False]


def test_anthropic_errors_are_typed(claude: anthropic.Anthropic, routed: RoutedWebUI) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="gpt-admin", messages=HELLO, max_tokens=20)  # type: ignore[arg-type]
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="gpt-4", messages=[], max_tokens=20)
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="sk-wrong").messages.create(
            model="gpt-4",
            messages=HELLO,  # type: ignore[arg-type]
            max_tokens=20,
        )
    prepare(routed, Answer(text=["half"], failure="out of memory"))
    with (
        pytest.raises(anthropic.APIStatusError),
        claude.messages.stream(model="gpt-4", messages=HELLO, max_tokens=20) as stream,  # type: ignore[arg-type]
    ):
        list(stream.text_stream)


# --- Ollama ---


def test_ollama_chats(llama: ollama.Client) -> None:
    answer = llama.chat("gpt-4", HELLO)
    assert (answer.model, answer.message.content, answer.done_reason) == ("gpt-4", SAID, "stop")
    assert answer.eval_count == 3
    parts = list(llama.chat("gpt-4", HELLO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == SAID
    assert parts[-1].done


def test_ollama_generates(llama: ollama.Client) -> None:
    assert llama.generate("gpt-4", "hello").response == SAID
    parts = list(llama.generate("gpt-4", "hello", stream=True))
    assert "".join(part.response or "" for part in parts) == SAID
    assert llama.generate("gpt-4").done_reason == "load"


def test_ollama_uses_tools_images_schemas_and_options(llama: ollama.Client, routed: RoutedWebUI) -> None:
    message = {"role": "user", "content": "what is this?", "images": [PIXEL]}
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    llama.chat("gpt-4", [message], format=schema, options={"temperature": 0.5, "top_k": 7})
    sent = routed.chats()[-1]
    assert sent["messages"][-1]["images"] == [PIXEL]  # type: ignore[index]
    assert sent["format"] == schema
    options = sent["options"]
    assert isinstance(options, dict)
    assert (options["temperature"], options["top_k"]) == (0.5, 7)
    prepare(routed, Answer(tool_calls=[ToolCall("clock", {"zone": "UTC"})]))
    for streams in (False, True):
        parts: Any = llama.chat("gpt-4-tools", HELLO, tools=[TOOL], stream=streams)
        calls = [call for part in (parts if streams else [parts]) for call in part.message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("clock", {"zone": "UTC"})
        ]
        for node in routed.nodes:
            node._server.state.answers.clear()  # noqa: SLF001 - see `fresh`
        prepare(routed, Answer(tool_calls=[ToolCall("clock", {"zone": "UTC"})]))


@pytest.mark.parametrize("name", ["gpt-4:latest", "GPT-4", "gpt-admin:latest"])
def test_ollama_takes_names_as_people_write_them(
    llama: ollama.Client, keys: dict[str, str], name: str
) -> None:
    """Would catch `llama3` that is unknown where `llama3:latest` is there, or that opens what is closed."""
    if name.startswith("gpt-admin"):
        with pytest.raises(ollama.ResponseError) as refused:
            llama.chat(name, HELLO)
        assert refused.value.status_code == 404
        assert name in refused.value.error
        llama._client.headers["Authorization"] = f"Bearer {keys['admin']}"  # noqa: SLF001
    answer = llama.chat(name, HELLO)
    assert (answer.model, answer.message.content) == (name, SAID)
    assert "completion" in (llama.show(name).capabilities or ())


def test_ollama_lists_shows_and_embeds(llama: ollama.Client) -> None:
    listed = {model.model for model in llama.list().models}
    assert "gpt-4" in listed
    assert not listed & {"gpt-admin", "llama3:8b"}
    assert "completion" in (llama.show("gpt-4").capabilities or ())
    made = llama.embed("text-embedding-3-small", ["one", "two"]).embeddings
    assert len(made[1]) == 8
    assert llama.embeddings("text-embedding-3-small", "two").embedding == made[1]


def test_ollama_errors_are_typed(llama: ollama.Client, root: str) -> None:
    with pytest.raises(ollama.ResponseError) as refused:
        llama.chat("gpt-admin", HELLO)
    assert refused.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as unknown:
        llama.show("gpt-admin")
    assert unknown.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as stranger:
        ollama.Client(root).list()
    assert stranger.value.status_code == 401


# --- models of Open WebUI's own connections ---

OWN, FORCED = "own:1b", "own-forced"  # the row of the second has "Stream Chat Response: On"


@pytest.fixture(scope="module")
def own(routed: RoutedWebUI) -> Iterator[OllamaNode]:
    """An Ollama that Open WebUI asks over a connection of its own."""
    with OllamaNode([Model(OWN, capabilities=("completion", "tools"))]) as node:
        form = {"ENABLE_OLLAMA_API": True, "OLLAMA_BASE_URLS": [node.url], "OLLAMA_API_CONFIGS": {}}
        routed.admin.post("/ollama/config/update", form)
        share(routed.admin, OWN)
        share(routed.admin, FORCED, base_model_id=OWN, params={"stream_response": True})
        routed.admin.models(refresh=True)
        yield node
        for name in (OWN, FORCED):
            routed.admin.post("/api/v1/models/model/delete", {"id": name})
        routed.admin.post(
            "/ollama/config/update", form | {"ENABLE_OLLAMA_API": False, "OLLAMA_BASE_URLS": []}
        )
        routed.admin.models(refresh=True)


def asked_of(node: OllamaNode) -> Json:
    """The last chat that reached it."""
    return next(request.body or {} for request in reversed(node.requests) if request.path == "/api/chat")


def test_an_own_connection_gets_the_settings_of_openais_clients(
    client: openai.OpenAI, own: OllamaNode
) -> None:
    """Would catch a length limit, a form or a stop that Open WebUI loses, or that Ollama refuses."""
    made = client.chat.completions.create(
        model=OWN,
        messages=HELLO,
        max_completion_tokens=16,
        stop="\n",
        tools=[TOOL],
        tool_choice="none",
        response_format={"type": "json_object"},
        extra_body={"top_k": 7, "max_tokens": None},
    )
    assert made.choices[0].message.content == SAID
    sent = asked_of(own)
    assert sent["options"] == {"num_predict": 16, "stop": ["\n"], "top_k": 7}
    assert sent["format"] == "json"
    assert not sent.get("tools")
    empty: Json = {"response_format": None, "stop": None, "max_tokens": None, "tools": None}
    client.chat.completions.create(model=OWN, messages=HELLO, extra_body=empty)
    assert not asked_of(own).get("options")


def test_an_own_connection_gets_the_settings_of_other_clients(
    claude: anthropic.Anthropic, llama: ollama.Client, own: OllamaNode
) -> None:
    """As above, for what Anthropic's and Ollama's own clients call the same settings."""
    llama.chat(OWN, HELLO, format="json", options={"num_predict": 16, "stop": ["x"]}, keep_alive="5m")
    sent = asked_of(own)
    assert (sent["format"], sent["keep_alive"]) == ("json", "5m")
    assert sent["options"] == {"num_predict": 16, "stop": ["x"]}
    claude.messages.create(model=OWN, messages=HELLO, max_tokens=16, top_k=7, stop_sequences=["x"])  # type: ignore[arg-type]
    assert asked_of(own)["options"] == {"num_predict": 16, "stop": ["x"], "top_k": 7}


def test_a_row_that_streams_answers_whole(
    client: openai.OpenAI, claude: anthropic.Anthropic, llama: ollama.Client, own: OllamaNode
) -> None:
    """Would catch a model that fails for clients that want no stream, as its row says that it streams."""
    made = client.chat.completions.create(model=FORCED, messages=HELLO)
    assert asked_of(own)["stream"] is True
    assert (made.object, made.model, made.choices[0].message.content) == ("chat.completion", FORCED, SAID)
    assert made.choices[0].finish_reason == "stop"
    assert claude.messages.create(model=FORCED, messages=HELLO, max_tokens=20).content[0].text == SAID  # type: ignore[arg-type,union-attr]
    assert llama.chat(FORCED, HELLO).message.content == SAID
    own.enqueue(Answer(tool_calls=[ToolCall("clock", {"zone": "UTC"})]))
    called = client.chat.completions.create(model=FORCED, messages=HELLO, tools=[TOOL]).choices[0]
    assert called.message.tool_calls is not None
    assert json.loads(called.message.tool_calls[0].function.arguments) == {"zone": "UTC"}


# --- others ---


def test_langchain(root: str, keys: dict[str, str]) -> None:
    headers = {"headers": {"Authorization": f"Bearer {keys['student']}"}}
    chat = ChatOllama(model="gpt-4", base_url=root, client_kwargs=headers)
    assert chat.invoke("hello").content == SAID
    assert "".join(str(part.content) for part in chat.stream("hello")) == SAID
    vectors = OpenAIEmbeddings(
        model="text-embedding-3-small",
        base_url=f"{root}/v1",
        api_key=keys["student"],  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    )
    assert [len(vector) for vector in vectors.embed_documents(["one", "two"])] == [8, 8]


def test_the_documented_snippets_run(
    root: str, keys: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch documentation that no client can follow."""
    text = DOCS.read_text(encoding="utf-8")
    text = text.replace("http://localhost:8080/ollama-pack", root).replace("sk-YOUR-KEY", keys["student"])
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, {})  # noqa: S102 - our own documentation
    assert capsys.readouterr().out.split("\n")[:4] == [SAID] * 4
    (command,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)  # noqa: S607
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == SAID
    for written in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert yaml.safe_load(written)["models"][0]["apiBase"] == f"{root}/v1"


def test_curl(root: str, keys: dict[str, str]) -> None:
    def curl(path: str, body: Json) -> str:
        command = ["curl", "-sS", f"{root}{path}", "-H", f"Authorization: Bearer {keys['student']}"]
        done = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True)
        return done.stdout

    body: Json = {"model": "gpt-4", "messages": HELLO}
    assert json.loads(curl("/v1/chat/completions", body))["choices"][0]["message"]["content"] == SAID
    streamed = curl("/v1/chat/completions", body | {"stream": True})
    assert streamed.rstrip().endswith("data: [DONE]")
    assert json.loads(curl("/api/chat", body | {"stream": False}))["message"]["content"] == SAID


# --- who may what ---

NAMES = {
    # name → whether the plain user may chat with it
    "gpt-4": True,
    "gpt-4-tools": True,
    "gpu_router.gpt-4": True,
    "gpt-admin": False,
    "gpu_router.gpt-admin": False,
    "llama3:8b": False,
    "gpu_router.llama3:8b": False,
    "llava:13b": False,
    "claude-opus": False,
    "nomic-embed-text": False,
    "no-such-model": False,
    "": False,
    "response_cache_replay": False,
}
CHATS: dict[str, Json] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 20},
    "/api/chat": {"messages": HELLO, "stream": False},
    "/api/generate": {"prompt": "hello", "stream": False},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/api/show": {},
}
NOT_TO_A_NODE = {"/api/show", "/v1/messages/count_tokens"}


@pytest.mark.parametrize("path", CHATS)
def test_a_plain_user_gets_nowhere_without_a_grant(
    root: str, keys: dict[str, str], routed: RoutedWebUI, path: str
) -> None:
    """Every route, name and user, with fields by which a client may try to get round the check."""
    headers = {"Authorization": f"Bearer {keys['student']}"}
    before = len(routed.chats())
    for name, is_open in NAMES.items():
        body = {**CHATS[path], "model": name}
        assert requests.post(f"{root}{path}", json=body, timeout=60).status_code == 401
        for tricks in ({}, {"model_item": {"direct": True, "id": name}, "params": {"model": "llama3:8b"}}):
            answer = requests.post(f"{root}{path}", json=body | tricks, headers=headers, timeout=60)
            assert answer.ok is is_open, (name, answer.text)
    reached = len(routed.chats()) - before
    assert reached == (0 if path in NOT_TO_A_NODE else 2 * sum(NAMES.values()))


def test_a_name_that_can_be_none_is_not_remembered(root: str, keys: dict[str, str]) -> None:
    """Would catch a user who fills the server's memory with names."""
    headers = {"Authorization": f"Bearer {keys['student']}"}
    for path, field in {
        "/v1/chat/completions": "model",
        "/v1/embeddings": "model",
        "/api/show": "name",
    }.items():
        body = {field: "x" * 600, "messages": HELLO, "input": "one"}
        answer = requests.post(f"{root}{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code == 400
        assert "600 characters" in answer.text
        assert len(answer.text) < 500


def test_parameters_for_all_models_reach_the_node(
    root: str, keys: dict[str, str], routed: RoutedWebUI, mode: str
) -> None:
    """Would catch prompts that are cut at the node's own context, since an admin's is left out."""
    before = routed.admin.get("/api/v1/configs/models")
    params = {"num_ctx": 8192, "temperature": 0.1}
    routed.admin.post("/api/v1/configs/models", before | {"DEFAULT_MODEL_PARAMS": params})
    try:
        time.sleep(ACCESS_SECONDS + 0.5)
        for key in keys.values():
            body = {"model": "gpt-4", "messages": HELLO}
            headers = {"Authorization": f"Bearer {key}"}
            chat = f"{root}/v1/chat/completions"
            requests.post(chat, json=body, headers=headers, timeout=60).raise_for_status()
            assert routed.chats()[-1]["options"] == params, mode
    finally:
        routed.admin.post("/api/v1/configs/models", before)
        time.sleep(ACCESS_SECONDS + 0.5)


def test_a_revoked_key_is_noticed_at_once(root: str, routed: RoutedWebUI, mode: str) -> None:
    account = routed.webui.add_user(f"leaver-{mode}", "leaver-password")
    api = OpenWebUI(routed.webui.url, account.token)
    headers = {"Authorization": f"Bearer {api_key(api)}"}
    body = {"model": "gpt-4", "messages": HELLO}

    def ask() -> int:
        return requests.post(
            f"{root}/v1/chat/completions", json=body, headers=headers, timeout=60
        ).status_code

    assert [ask(), ask()] == [200, 200]
    api.delete("/api/v1/auths/api_key")
    soon(lambda: ask() == 401)


def test_a_grant_that_is_taken_away_is_noticed_at_once(
    root: str, keys: dict[str, str], routed: RoutedWebUI
) -> None:
    body = {"model": "gpt-4-tools", "messages": HELLO}
    headers = {"Authorization": f"Bearer {keys['student']}"}

    def ask() -> int:
        return requests.post(
            f"{root}/v1/chat/completions", json=body, headers=headers, timeout=60
        ).status_code

    row = routed.admin.model_row("gpt-4-tools")
    assert [ask(), ask()] == [200, 200]
    routed.admin.post("/api/v1/models/model/access/update", {**row, "access_grants": []})
    try:
        soon(lambda: ask() == 404)
    finally:
        routed.admin.post("/api/v1/models/model/access/update", row)
    soon(lambda: ask() == 200)


# What the nodes do → the status that clients get, and whether they are told when to ask again.
FAILURES = {
    "refused": ((400, "this prompt is too long"), 400, False),
    "failed": ((500, "llama runner process has terminated"), 502, False),
    "busy": ((503, "server busy"), 503, True),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_has_the_client_s_form(
    root: str, keys: dict[str, str], routed: RoutedWebUI, what: str
) -> None:
    """Would catch a failure that comes as an answer, or that makes a client do the wrong thing."""
    refusal, status, waits = FAILURES[what]
    headers = {"Authorization": f"Bearer {keys['student']}"}
    asked = [path for path in CHATS if path not in NOT_TO_A_NODE]
    paths = ["/v1/messages"] if waits else asked  # which the router tries again for a while
    for path in paths:
        for streams in (False, True):
            prepare(routed, Answer(refusal=refusal))
            body = {**CHATS[path], "model": "gpt-4", "stream": streams}
            answer = requests.post(f"{root}{path}", json=body, headers=headers, timeout=60)
            for node in routed.nodes:
                node._server.state.answers.clear()  # noqa: SLF001 - see `fresh`
            assert answer.status_code == status, (path, streams, answer.text)
            assert ("retry-after" in answer.headers) is waits
            told = answer.json()["error"]
            sentence = told if path.startswith("/api/") else told["message"]
            assert sentence.endswith(".") or "this prompt is too long" in sentence
            assert "127.0.0.1" not in answer.text


def test_a_poison_request_is_its_sender_s_alone(root: str, keys: dict[str, str], routed: RoutedWebUI) -> None:
    """Would catch a model that a client's odd requests shut for whoever comes next."""

    def ask(who: str) -> int:
        headers = {"Authorization": f"Bearer {keys[who]}"}
        body = {"model": "gpt-4", "messages": HELLO, "stream": False}
        return requests.post(f"{root}/api/chat", json=body, headers=headers, timeout=60).status_code

    for _ in range(8):
        prepare(routed, Answer(refusal=(500, "grammar cannot be parsed")))
        assert ask("student") == 400
    for node in routed.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - see `fresh`
    assert ask("admin") == 200


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_one_user_s_options_are_not_another_s(
    root: str, keys: dict[str, str], routed: RoutedWebUI, path: str, mode: str
) -> None:
    """Would catch a client's `num_ctx` that cuts everybody's prompts, or a `num_gpu` that slows them."""
    machine = {"num_gpu": 0, "num_thread": 1, "num_batch": 1}
    strange: Json = {"options": {"num_ctx": 256, **machine}, "keep_alive": -1}
    mark = f"{mode} {path}"
    for more in (strange, {}):
        headers = {"Authorization": f"Bearer {keys['student']}"}
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": mark}], "stream": False, **more}
        assert requests.post(f"{root}{path}", json=body, headers=headers, timeout=60).ok
    chats = [chat for chat in routed.chats() if mark in str(chat)]
    assert [chat.get("options") or {} for chat in chats] == [{"num_ctx": 256}, {}]
    assert [chat.get("keep_alive") for chat in chats] == [None, None]


def test_many_at_once(root: str, keys: dict[str, str]) -> None:
    """Would catch answers of one client given to another."""
    headers = {"Authorization": f"Bearer {keys['student']}"}

    def ask(number: int) -> str:
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": f"number {number}"}]}
        answer = requests.post(f"{root}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(ask, range(AT_ONCE))) == [
            f"You said: number {number}" for number in range(AT_ONCE)
        ]
