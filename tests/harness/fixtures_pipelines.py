"""A real Pipelines server with the pack's pipelines, alone and behind a real Open WebUI.

These fixtures have the names of those in `fixtures_webui`, and stand in for them in tests/pipelines: its
Open WebUI is another one, in which the filter function is off and the Pipelines server's filter resolves.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.client import OpenWebUI, Pipelines
from harness.fixtures_webui import MODELS, ROOT, upload
from harness.ollama_node import OllamaNode
from local.pipelines import PipelinesMissingError, RunningPipelines, pipelines_server, server_folder
from local.webui import RunningWebUI, connections, open_webui

FILTER = "model_alias_filter"
FILTER_FILE = ROOT / "pipelines" / f"{FILTER}.py"

ALIASES = """\
plugins: [model_alias_filter]
models:
  - {name: gpt-3.5-turbo, local_name: "llama3:8b"}
  - {name: gpt-4, local_name: ["mixtral:8x7b", "llama3:70b-instruct-q4_K_M", "llama3:8b"]}
  - {name: gpt-4, local_name: "llava:13b", when: {vision: true}}
  - {name: gpt-4, local_name: "qwen2.5:32b", when: {tools: true}}
  - {name: gpt-4, local_name: "llama3:70b-instruct-q8_0", when: {context: 8192}}
  - {name: gpt-4o, local_name: "llama3:70b", quantization: [q8_0, q4_K_M]}
"""


@pytest.fixture(scope="session")
def node() -> Iterator[OllamaNode]:
    """The scripted Ollama behind both servers."""
    with OllamaNode(models=MODELS) as node:
        yield node


@pytest.fixture(scope="session")
def pack_yaml(node: OllamaNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack.yaml with aliases and the scripted node."""
    return write_pack_yaml(tmp_path_factory.mktemp("pack"), node.url)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPipelines]:
    """The Pipelines server behind the session's Open WebUI."""
    skip_unless_installed()
    with pipelines_server(tmp_path_factory.mktemp("pipelines")) as server:
        yield server


@pytest.fixture(scope="session")
def webui(
    node: OllamaNode, pipelines: RunningPipelines, pack_yaml: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWebUI]:
    """Open WebUI between the two, the pack uploaded to it and to the Pipelines server by the script."""
    between = connections(ollama=(node.url,), openai=((pipelines.url, pipelines.key),))
    with open_webui(tmp_path_factory.mktemp("webui"), environment=between) as webui:
        done = upload(webui, str(pack_yaml), environment=pipelines.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        _switch_off_function(webui)
        yield webui


@pytest.fixture(scope="session")
def admin(webui: RunningWebUI) -> Iterator[OpenWebUI]:
    """The API as the admin."""
    api = webui.as_admin()
    yield api
    api.close()


@pytest.fixture(scope="session")
def student(webui: RunningWebUI) -> Iterator[OpenWebUI]:
    """The API as a plain user."""
    api = OpenWebUI(webui.url, webui.add_user("student", "student-password").token)
    yield api
    api.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPipelines]:
    """A Pipelines server without Open WebUI, the committed file in its folder as a container mounts it."""
    skip_unless_installed()
    folder = tmp_path_factory.mktemp("alone")
    mount_filter(folder)
    with pipelines_server(folder) as server:
        yield server


@pytest.fixture
def filter_api(alone: RunningPipelines) -> Iterator[Pipelines]:
    """The API of the server alone, its filter with the valves that it comes with."""
    api = alone.api()
    api.post(f"/{FILTER}/valves/update", {})
    yield api
    api.close()


def skip_unless_installed() -> None:
    try:
        server_folder()
    except PipelinesMissingError as error:
        pytest.skip(str(error))


def mount_filter(folder: Path) -> None:
    """Put the committed file where a server of `pipelines_server(folder)` finds it when it starts."""
    (folder / "pipelines").mkdir()
    shutil.copy(FILTER_FILE, folder / "pipelines")


def write_pack_yaml(folder: Path, *urls: str, aliases: str = ALIASES) -> Path:
    """Write a pack.yaml with these Ollama nodes."""
    endpoints = "".join(f"\n    - {{url: {json.dumps(url)}}}" for url in urls)
    nodes = f"model_provider:\n  endpoints:{endpoints}\n" if urls else ""
    file = folder / "pack.yaml"
    file.write_text(nodes + aliases)
    return file


def resolved(api: Pipelines, model: str, **body: Any) -> str:
    """The model that the filter turns a name into."""
    chat = {"model": model, "messages": [{"role": "user", "content": "hello"}], **body}
    answer: dict[str, Any] = api.post(f"/{FILTER}/filter/inlet", {"body": chat, "user": {"role": "user"}})
    return str(answer["model"])


def _switch_off_function(webui: RunningWebUI) -> None:
    """So that only the Pipelines server's filter is left to resolve aliases."""
    api = webui.as_admin()
    assert api.plugins("functions")[FILTER]["is_active"]
    api.post(f"/api/v1/functions/id/{FILTER}/toggle")
    assert not api.plugins("functions")[FILTER]["is_active"]
    api.close()
