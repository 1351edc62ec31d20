"""The way to the nodes: what Open WebUI sends to a connection, the router sends there too."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from deploy.client import OpenWebUI
from harness.chat_bodies import HELLO
from harness.fixtures_routing import NO_BACKGROUND
from harness.fixtures_webui import upload
from harness.ollama_node import Model, OllamaNode
from harness.recording_proxy import RecordingProxy
from local.webui import RunningWebUI, connections, open_webui

Json = dict[str, Any]

HIDDEN = "http://gpu0.example:11434"  # there is no such host: only the proxy knows the way
ROUTER = "gpu_router.llama3:8b"
# What differs between two requests, or between two HTTP clients, and says nothing of the sender.
_OF_THE_CLIENT = {"content-length", "host", "accept", "accept-encoding", "user-agent", "connection"}


@dataclass(frozen=True)
class ProxiedWebUI:
    """Open WebUI in a network whose way out is a proxy.

    Attributes:
        webui: the server.
        node: what the proxy leads to, whatever is asked for.
        proxy: the proxy.
        admin, student: the API as each of them.
    """

    webui: RunningWebUI
    node: OllamaNode
    proxy: RecordingProxy
    admin: OpenWebUI
    student: OpenWebUI

    def connect(self, url: str, **settings: Any) -> None:
        """Set Open WebUI's one connection, and let the router see it."""
        self.admin.post(
            "/ollama/config/update",
            {"ENABLE_OLLAMA_API": True, "OLLAMA_BASE_URLS": [url], "OLLAMA_API_CONFIGS": {"0": settings}},
        )
        self.admin.post(
            "/api/v1/functions/id/gpu_router/update", self.admin.get("/api/v1/functions/id/gpu_router")
        )

    def sent(self, api: OpenWebUI, model: str, **more: Any) -> dict[str, str]:
        """The headers with which a chat reaches the node."""
        self.admin.models(refresh=True)
        self.node.requests.clear()
        api.post("/api/chat/completions", {"model": model, "messages": HELLO, **more})
        (headers,) = (request.headers for request in self.node.requests if request.path == "/api/chat")
        return {name: value for name, value in headers.items() if name.lower() not in _OF_THE_CLIENT}


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedWebUI]:
    """The server, started once."""
    folder = tmp_path_factory.mktemp("proxied")
    with OllamaNode([Model("llama3:8b")]) as node, RecordingProxy(node.url) as proxy:
        network = {
            "HTTP_PROXY": proxy.url,
            "http_proxy": proxy.url,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
        }
        with open_webui(folder, environment=connections(ollama=(HIDDEN,)) | NO_BACKGROUND | network) as webui:
            config = folder / "pack.yaml"
            config.write_text("plugins: [gpu_router]\nrouter: {probe_seconds: 0.5}\n")
            done = upload(webui, str(config))
            assert done.returncode == 0, done.stdout + done.stderr
            account = webui.add_user("Zoë Müller", "student-password")
            admin, student = webui.as_admin(), OpenWebUI(webui.url, account.token)
            yield ProxiedWebUI(webui, node, proxy, admin, student)
            admin.close()
            student.close()


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        (HIDDEN, {}),
        (HIDDEN, {"key": "node-secret"}),
        (HIDDEN, {"key": "node-secret", "auth_type": "bearer", "headers": {"X-Team": "blue"}}),
        (HIDDEN, {"key": "node-secret", "auth_type": "none"}),
        (HIDDEN, {"auth_type": "session"}),
        (HIDDEN, {"auth_type": "session", "forward_cookies": True}),
        (HIDDEN, {"auth_type": "system_oauth"}),
        (HIDDEN, {"headers": {"Authorization": "Basic bWU6cHc=", "X-User": "{{USER_NAME}} é {{USER_ID}}"}}),
        (HIDDEN, {"headers": {"X-Groups": "{{USER_GROUPS}}", "X-Chat": "{{CHAT_ID}}", "X-Task": "{{TASK}}"}}),
        (HIDDEN.replace("://", "://me:p%40ss@"), {}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_router_sends_what_open_webui_sends(proxied: ProxiedWebUI, url: str, settings: Json) -> None:
    """Would catch a gateway that lets Open WebUI in and not the router, or that is not told who asks."""
    proxied.connect(url, **settings)
    more = {"chat_id": "local:1"} if "X-Chat" in settings.get("headers", {}) else {}
    native = proxied.sent(proxied.admin, "llama3:8b", **more)
    assert "X-OpenWebUI-User-Id" in native
    assert proxied.sent(proxied.admin, ROUTER, **more) == native
