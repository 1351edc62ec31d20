"""The whole way on real parts: an OpenAI client, Open WebUI with the pack, a real Ollama, a real model."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import openai
import pytest

from harness.fixtures_ollama import RealServer
from harness.fixtures_webui import upload
from local.webui import RunningWebUI, connections, open_webui

MISSING = "a-model-that-nobody-has:70b"


@pytest.fixture(scope="module")
def webui(real_server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWebUI]:
    """Open WebUI in front of the real Ollama, with the pack uploaded."""
    if find_spec("open_webui") is None:
        pytest.skip("Open WebUI is not installed in this environment")
    folder: Path = tmp_path_factory.mktemp("webui")
    config = folder / "pack.yaml"
    config.write_text(
        "plugins: [model_alias_filter, response_cache_filter, response_cache_replay]\nmodels:\n"
        f'  - {{name: gpt-4, local_name: ["{MISSING}", "{real_server.other}"]}}\n'
        f'  - {{name: gpt-3.5-turbo, local_name: "{real_server.model}"}}\n'
    )
    with open_webui(folder, environment=connections(ollama=(real_server.url,))) as webui:
        done = upload(webui, str(config))
        assert done.returncode == 0, done.stdout + done.stderr
        yield webui


@pytest.fixture(scope="module")
def client(webui: RunningWebUI) -> Iterator[openai.OpenAI]:
    """The OpenAI client of a plain user."""
    token = webui.add_user("student", "student-password").token
    with openai.OpenAI(base_url=f"{webui.url}/api", api_key=token, max_retries=0) as client:
        yield client


def test_alias_is_answered_by_a_real_model(client: openai.OpenAI, real_server: RealServer) -> None:
    """Would catch an alias that only a scripted node answers, or a fallback that a real listing breaks."""
    answer = client.chat.completions.create(
        model="gpt-4", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
    )
    assert answer.choices[0].message.content
    assert answer.model.removesuffix(":latest") == real_server.other


def test_stream_of_a_real_model(client: openai.OpenAI, real_server: RealServer) -> None:
    """Would catch a stream that arrives empty, in one piece, or without its end."""
    stream = client.chat.completions.create(
        model="gpt-3.5-turbo",
        messages=[{"role": "user", "content": "Count from one to ten."}],
        max_tokens=12,
        stream=True,
    )
    chunks = [chunk for chunk in stream if chunk.choices]
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 1
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    assert {chunk.model for chunk in chunks} == {real_server.model}


def test_answer_of_a_real_model_is_given_again(client: openai.OpenAI) -> None:
    """Would catch an answer of a real engine that is never kept, or that changes on the way."""
    answers = [
        client.chat.completions.create(
            model="gpt-3.5-turbo",
            messages=[{"role": "user", "content": "Say hello in one short sentence."}],
            temperature=0,
            seed=1,
        )
        for _ in range(2)
    ]
    first, second = answers
    assert first.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == first.choices[0].message.content
    assert second.usage == first.usage
    assert (second.model_extra or {})["ollama_pack"]["cache"] == "hit"
    assert "ollama_pack" not in (first.model_extra or {})
