"""A real Open WebUI whose chats the Pipelines server's `gpu_router` gives to two nodes."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests

from deploy.client import OpenWebUI
from harness.fixtures_pipelines import skip_unless_installed
from harness.fixtures_pipelines_router import JSON, LLAMA, SLASHED
from harness.fixtures_routing import NO_BACKGROUND
from harness.fixtures_webui import upload
from harness.ollama_node import OllamaNode, Request
from local.pipelines import RunningPipelines, pipelines_server
from local.webui import RunningWebUI, connections, open_webui

PIPED_YAML = """\
pipelines: [gpu_router]
plugins: [gpu_router]
model_provider:
  endpoints:
    - {{name: gpu0, url: "{gpu0}", slots: 8}}
    - {{name: gpu1, url: "{gpu1}", slots: 8}}
  models:
    - {{name: gpt-4, local_name: ["mixtral:8x7b", "llama3:8b"]}}
router: {{probe_seconds: 0.5}}
"""


@dataclass(frozen=True)
class PipedWebUI:
    """Open WebUI, the Pipelines server behind it, and the nodes behind that.

    Attributes:
        webui: Open WebUI.
        pipelines: the Pipelines server.
        nodes: gpu0 and gpu1.
        admin: Open WebUI's API as the admin.
        student: the same as a plain user.
    """

    webui: RunningWebUI
    pipelines: RunningPipelines
    nodes: tuple[OllamaNode, OllamaNode]
    admin: OpenWebUI
    student: OpenWebUI

    def ask(self, api: OpenWebUI, model: str, text: str = "hello", **more: object) -> requests.Response:
        """Send a chat; a streamed answer comes back as soon as it has a status."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, **more}
        return requests.post(
            f"{self.webui.url}/api/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {api.key}"},
            stream=bool(body["stream"]),
            timeout=60,
        )

    def chats(self) -> list[Request]:
        """All chats that reached a node, in the order in which they came."""
        chats = [request for node in self.nodes for request in node.requests if request.path == "/api/chat"]
        return sorted(chats, key=lambda request: request.came)

    def asked(self, text: str) -> JSON:
        """The body with which a node was asked this."""
        bodies = [request.body or {} for request in self.chats()]
        return next(body for body in bodies if body["messages"][-1]["content"] == text)


@pytest.fixture(scope="session")
def piped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipedWebUI]:
    """The servers, started once."""
    skip_unless_installed()
    folder = tmp_path_factory.mktemp("piped")
    with (
        OllamaNode([LLAMA, SLASHED]) as gpu0,
        OllamaNode([LLAMA]) as gpu1,
        pipelines_server(folder / "pipelines") as pipelines,
        open_webui(
            folder / "webui",
            environment=connections(openai=((pipelines.url, pipelines.key),)) | NO_BACKGROUND,
        ) as webui,
    ):
        config = folder / "pack.yaml"
        config.write_text(PIPED_YAML.format(gpu0=gpu0.url, gpu1=gpu1.url))
        done = upload(webui, str(config), environment=pipelines.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        student = OpenWebUI(webui.url, webui.add_user("student", "student-password").token)
        admin = webui.as_admin()
        yield PipedWebUI(webui, pipelines, (gpu0, gpu1), admin, student)
        admin.close()
        student.close()
