"""A real Open WebUI whose chats `gpu_router` gives to two nodes, uploaded by the script."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.client import OpenWebUI
from harness.fixtures_webui import upload
from harness.ollama_node import Model, OllamaNode
from local.webui import Account, RunningWebUI, connections, open_webui

LLAMA = Model("llama3:8b")
TOOLS = Model("qwen2.5:32b", capabilities=("completion", "tools"))
EMBEDDER = Model("nomic-embed-text", capabilities=("embedding",), embedding_length=8)
VISION = Model("llava:13b", capabilities=("completion", "vision"))

# Titles and the like come at any time after a chat, and would take the answers that a test lines up.
NO_BACKGROUND = dict.fromkeys(
    ("ENABLE_TITLE_GENERATION", "ENABLE_TAGS_GENERATION", "ENABLE_FOLLOW_UP_GENERATION"), "false"
)

API_KEYS = {"ENABLE_API_KEYS": "true", "USER_PERMISSIONS_FEATURES_API_KEYS": "true"}

ROUTED_YAML = """\
plugins: [model_alias_filter, gpu_router, ollama_pack_gateway]
model_provider:
  endpoints:
    - {{name: gpu0, url: "{gpu0}", slots: 2}}
    - {{name: gpu1, url: "{gpu1}", slots: 2, key: node-secret}}
  models:
    - {{name: gpt-4, local_name: ["mixtral:8x7b", "llama3:8b"]}}
    - {{name: gpt-4, local_name: "llava:13b", when: {{vision: true}}}}
    - {{name: gpt-4-tools, local_name: "qwen2.5:32b"}}
    - {{name: gpt-admin, local_name: "llama3:8b", audience: admin}}
    - {{name: "claude-*", local_name: "llama3:8b"}}
    - {{name: text-embedding-3-small, local_name: "nomic-embed-text"}}
    - {{name: embedding-admin, local_name: "nomic-embed-text", audience: admin}}
router: {{max_queue: 4, first_token_timeout: 20, probe_seconds: 0.5}}
"""


@dataclass(frozen=True)
class RoutedWebUI:
    """Open WebUI with the router, and the nodes behind it.

    Attributes:
        webui: the server.
        nodes: gpu0 and gpu1.
        admin: the API as the admin.
        student: the API as a plain user.
        account: the plain user's.
        pack_yaml: what was uploaded.
    """

    webui: RunningWebUI
    nodes: tuple[OllamaNode, OllamaNode]
    admin: OpenWebUI
    student: OpenWebUI
    account: Account
    pack_yaml: Path

    def chats(self) -> list[dict[str, object]]:
        """The bodies of all chats that reached a node, in the order in which they came."""
        chats = [request for node in self.nodes for request in node.requests if request.path == "/api/chat"]
        return [request.body or {} for request in sorted(chats, key=lambda request: request.came)]


@pytest.fixture(scope="session")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoutedWebUI]:
    """The server, started once."""
    folder = tmp_path_factory.mktemp("routed")
    with (
        OllamaNode([LLAMA, TOOLS]) as gpu0,
        OllamaNode([LLAMA, VISION, EMBEDDER]) as gpu1,
        open_webui(folder, environment=connections() | NO_BACKGROUND | API_KEYS) as webui,
    ):
        config = folder / "pack.yaml"
        config.write_text(ROUTED_YAML.format(gpu0=gpu0.url, gpu1=gpu1.url))
        done = upload(webui, str(config))
        assert done.returncode == 0, done.stdout + done.stderr
        account = webui.add_user("student", "student-password")
        admin, student = webui.as_admin(), OpenWebUI(webui.url, account.token)
        yield RoutedWebUI(webui, (gpu0, gpu1), admin, student, account, config)
        admin.close()
        student.close()
