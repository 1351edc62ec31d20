"""The gateway on a real Open WebUI, with the clients that people use."""

from collections.abc import Iterator

import openai
import pytest

from deploy.client import OpenWebUI
from harness.fixtures_routing import RoutedWebUI

HELLO = [{"role": "user", "content": "hello"}]


def api_key(api: OpenWebUI) -> str:
    """A key of Open WebUI's own for a user."""
    return str(api.post("/api/v1/auths/api_key", {})["api_key"])


@pytest.fixture(scope="module")
def keys(routed: RoutedWebUI) -> dict[str, str]:
    return {"admin": api_key(routed.admin), "student": api_key(routed.student)}


@pytest.fixture
def client(routed: RoutedWebUI, keys: dict[str, str]) -> Iterator[openai.OpenAI]:
    """OpenAI's client, as the plain user."""
    base = f"{routed.webui.url}/ollama-pack/v1"
    with openai.OpenAI(base_url=base, api_key=keys["student"], max_retries=0) as client:
        yield client


def test_openai_lists_what_names_stand_for(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {"gpt-4", "gpt-4-tools"} <= set(listed)
    assert not set(listed) & {"gpt-admin", "llama3:8b", "gpu_router.llama3:8b"}
    assert listed["gpt-4"].model_dump()["ollama_pack"]["stands_for"] == ["llama3:8b", "llava:13b"]
    assert client.models.retrieve("gpt-4").id == "gpt-4"


def test_openai_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="gpt-4", messages=HELLO)
    completion = answer.parse()
    assert completion.choices[0].message.content == "You said: hello"
    assert completion.model == "gpt-4"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3
    assert answer.headers["x-request-id"].startswith("req_")


def test_openai_streams(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="gpt-4", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hello"
    assert {chunk.model for chunk in chunks} == {"gpt-4"}
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_openai_errors_are_typed(client: openai.OpenAI) -> None:
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
