"""A real Open WebUI for the test session, with the pack uploaded as an admin uploads it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from deploy.client import OpenWebUI
from harness.ollama_node import Model, OllamaNode
from local.webui import Account, RunningWebUI, connections, open_webui

ROOT = Path(__file__).resolve().parent.parent.parent

# What the scripted node has; the tests' aliases name some more that it has not.
MODELS = (
    Model("llama3:8b"),
    Model("llama3:70b-instruct-q4_K_M", quantization_level="Q4_K_M"),
    Model("llama3:70b-instruct-q8_0", quantization_level="Q8_0"),
    Model("llava:13b", capabilities=("completion", "vision")),
    Model("qwen2.5:32b", capabilities=("completion", "tools")),
    Model("private:1b"),
)

PACK_YAML = """\
plugins: [model_alias_filter]
models:
  - {name: gpt-3.5-turbo, local_name: "llama3:8b"}
  - {name: gpt-4, local_name: ["mixtral:8x7b", "llama3:70b-instruct-q4_K_M", "llama3:8b"]}
  - {name: gpt-4, local_name: "llava:13b", when: {vision: true}}
  - {name: gpt-4, local_name: "qwen2.5:32b", when: {tools: true}}
  - {name: gpt-4o, local_name: "llama3:70b", quantization: [q8_0, q4_K_M]}
  - {name: gpt-4-admin, local_name: "private:1b", audience: admin}
  - {name: "private:*", local_name: ["private:1b", "llama3:8b"]}
  - {name: "locked*", local_name: ["mixtral:8x7b", "private:1b"]}
  - {name: "not-here*", local_name: "mixtral:8x7b"}
"""


@pytest.fixture(scope="session")
def node() -> Iterator[OllamaNode]:
    """The scripted Ollama behind the session's Open WebUI."""
    with OllamaNode(models=MODELS) as node:
        yield node


@pytest.fixture(scope="session")
def bare_webui(node: OllamaNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWebUI]:
    """Open WebUI as it is without the pack."""
    with open_webui(tmp_path_factory.mktemp("webui"), environment=connections(ollama=(node.url,))) as webui:
        yield webui


@pytest.fixture(scope="session")
def pack_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("pack") / "pack.yaml"
    config.write_text(PACK_YAML)
    return config


@pytest.fixture(scope="session")
def webui(bare_webui: RunningWebUI, pack_yaml: Path) -> RunningWebUI:
    """Open WebUI with the pack as `PACK_YAML` wants it, uploaded by the script."""
    done = upload(bare_webui, str(pack_yaml))
    assert done.returncode == 0, done.stdout + done.stderr
    return bare_webui


@pytest.fixture(scope="session")
def admin(webui: RunningWebUI) -> Iterator[OpenWebUI]:
    """The API as the admin."""
    api = webui.as_admin()
    yield api
    api.close()


@pytest.fixture(scope="session")
def student_account(webui: RunningWebUI) -> Account:
    return webui.add_user("student", "student-password")


@pytest.fixture(scope="session")
def student(webui: RunningWebUI, student_account: Account) -> Iterator[OpenWebUI]:
    """The API as a plain user."""
    api = OpenWebUI(webui.url, student_account.token)
    yield api
    api.close()


def upload(
    webui: RunningWebUI | None, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `scripts/upload.py` as an admin does, and return what it printed and its exit status."""
    servers = {"OPEN_WEBUI_URL": webui.url, "OPEN_WEBUI_TOKEN": webui.admin.token} if webui else {}
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("OPEN_WEBUI", "PIPELINES"))
    }
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "upload.py", *arguments],
        env=kept | servers | dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
