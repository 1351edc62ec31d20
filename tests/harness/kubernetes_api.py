"""The one route of Kubernetes' API that discovery asks, over TLS, with an account as a pod has it."""

import ssl
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web


def pod(name: str, address: str, *, ready: bool = True, ends: bool = False) -> dict[str, Any]:
    """A pod as the API lists it."""
    return {
        "metadata": {"name": name} | ({"deletionTimestamp": "2026-01-01T00:00:00Z"} if ends else {}),
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": str(ready)},
            ],
        },
    }


class PodsApi:
    """Lists `pods` to whoever asks, or answers with another status."""

    def __init__(self, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.account = certificate.parent
        (self.account / "ca.crt").write_bytes(certificate.read_bytes())
        (self.account / "token").write_text("account-token\n")
        self.pods: list[Any] = []
        self.status = 200
        self.asked: list[dict[str, str]] = []
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate)
        self._monkeypatch = monkeypatch

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._list)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        port = self._runner.addresses[0][1]
        self._monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        self._monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        self.asked.append(
            {
                "path": request.path,
                "labelSelector": request.query["labelSelector"],
                "authorization": request.headers["Authorization"],
            }
        )
        if self.status != 200:
            return web.Response(status=self.status, headers={"Location": "https://127.0.0.1:1/"})
        return web.json_response({"kind": "PodList", "items": self.pods})
