"""An Open WebUI with the events function and a scripted router, as its admin sees them."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import requests

from harness.upload_target import Target
from local.webui import Account

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
EVENTS, ROUTER = "ollama_pack_events", "gpu_router"
PATIENCE = 40.0  # seconds: more than the function leaves between two looks
EVERYBODY = {("user", "*", "read")}

GPU: Json = {
    "index": 0,
    "name": "A100",
    "utilization": 37.0,
    "memory_used": 20 * 2**30,
    "memory_total": 40 * 2**30,
}
NODE: Json = {
    "name": "gpu0",
    "url": "http://secret-host:11434",
    "healthy": True,
    "in_flight": 2,
    "queued": 1,
    "models": ["llama3:8b"],
    "gpus": [GPU],
}
LOAD: Json = {"gpu0_usage": 37.0, "nodes": [NODE]}
RUNNER: Json = {"model": "llama3:8b", "context": 8192, "slots": 2, "running": 1, "prefixes": 3}
RUNNING: Json = {
    "id": "r1",
    "at": 1_750_000_000.5,
    "asked": "gpt-4",
    "node": "gpu0",
    "model": "llama3:8b",
    "user": "",
    "outcome": "answering",
    "loads": False,
    "background": False,
    "prompt": 1000,
    "held": 800,
    "waited": 0.0,
    "predicted": 0.42,
    "first": 0.47,
    "took": 1.5,
    "considered": [
        {
            "node": "gpu0",
            "model": "llama3:8b",
            "terms": {"wait": 0.0, "load": 0.0, "prompt": 0.42, "evict": 0.0},
        },
        {
            "node": "gpu1",
            "model": "llama3:8b",
            "terms": {"wait": 0.0, "load": 6.5, "prompt": 2.1, "evict": 0.8},
        },
    ],
}
DETAILS: Json = {
    "breaker": "closed",
    "runners": [RUNNER],
    "rates": {"abc": {"model": "llama3:8b", "prompt": 0.0021}},
}
DASHBOARD: Json = {"nodes": [NODE | DETAILS], "waiting": 1, "running": [RUNNING]}


def plugin_text(name: str = EVENTS) -> str:
    return (ROOT / "functions" / f"{name}.py").read_text(encoding="utf-8")


class ScriptedRouter:
    """The router's script: what it is told to tell, and how often it was asked."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "router.json"
        self._said: Json = {"models": [], "aliases": [], "load": LOAD, "dashboard": DASHBOARD, "failing": []}
        self.tell()

    def tell(self, **changes: Any) -> None:
        """Say other things from now on."""
        self._said |= changes
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self._said))
        new.replace(self.path)  # at once: the server may be reading

    def asked(self, method: str) -> int:
        """How often a method was called."""
        asked = self.path.with_suffix(".asked")
        return asked.read_text().split().count(method) if asked.exists() else 0


class EventsTarget:
    """A deployment with the events function.

    Attributes:
        target: the server, as the uploader's tests see it.
        router: what the scripted router tells; it is not installed before `install_router`.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.api = target.api
        self.router = ScriptedRouter(folder)

    def install_router(self, table: str = "", **said: Any) -> None:
        self.router.tell(**said)
        self.create(ROUTER, (ROOT / "tests" / "harness" / "router_function.py").read_text(encoding="utf-8"))
        self.set_valves(ROUTER, script=str(self.router.path), aliases=table)
        self.toggle(ROUTER)

    def install(self, text: str | None = None, **valves: Any) -> None:
        """The events function, switched on, as an admin does it by hand."""
        self.create(EVENTS, plugin_text() if text is None else text)
        if valves:
            self.set_valves(EVENTS, **valves)
        self.toggle(EVENTS)

    def create(self, function: str, text: str) -> None:
        form = {"id": function, "name": function, "meta": {"description": ""}, "content": text}
        self.api.post("/api/v1/functions/create", form)

    def update(self, function: str, text: str) -> None:
        form = {"id": function, "name": function, "meta": {"description": ""}, "content": text}
        self.api.post(f"/api/v1/functions/id/{function}/update", form)

    def toggle(self, function: str) -> None:
        self.api.post(f"/api/v1/functions/id/{function}/toggle")

    def set_valves(self, function: str, **valves: Any) -> None:
        self.api.post(f"/api/v1/functions/id/{function}/valves/update", valves)

    def delete(self, function: str) -> None:
        self.target._delete(f"/api/v1/functions/id/{function}/delete")  # noqa: SLF001 - the harness's own

    def uninstall(self) -> None:
        """Leave the server as it was: routes go when the function is told that it is switched off."""
        if self.api.plugins("functions").get(EVENTS, {}).get("is_active"):
            self.toggle(EVENTS)
        self.target.clear()

    def get(self, path: str, account: Account | None, url: str = "") -> requests.Response:
        """Ask for a path as somebody, or as nobody."""
        headers = {"Authorization": f"Bearer {account.token}"} if account else {}
        return requests.get((url or self.target.webui.url) + path, headers=headers, timeout=60)

    @property
    def admin(self) -> Account:
        return self.target.webui.admin

    def data(self) -> Json:
        """What the dashboard is told."""
        found: Json = self.get("/ollama-pack/data", self.admin).json()
        return found

    def left(self) -> dict[str, str]:
        """Rows that are left alone, with the reason."""
        return {row["id"]: row["reason"] for row in self.data()["publishing"]["left"]}

    def grants(self, model: str) -> set[tuple[str, str, str]] | None:
        """Who may use a model; None when it has no row."""
        return self.target.grants(model) if model in self.target.rows else None

    def wait_for_look(self) -> None:
        """Until the function has looked at what there is now. The first look to end may have begun before."""
        for _ in range(2):
            before = self.looked_at()
            self.wake()
            eventually(partial(self._has_looked_since, before))

    def _has_looked_since(self, before: float | None) -> bool:
        return self.looked_at() != before

    def looked_at(self) -> float | None:
        """When the last look ended; None: there was none yet."""
        found: float | None = self.data()["publishing"]["looked_at"]
        return found

    def wake(self) -> None:
        """Make an event that changes nothing."""
        valves = self.api.valves("functions", EVENTS)
        self.set_valves(EVENTS, **valves)


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until a running server has come to what is expected; it tells nobody when it has."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)
