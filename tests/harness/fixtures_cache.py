"""A real Open WebUI with the response cache, before the router, the alias filter and a connection."""

import json
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from deploy.client import OpenWebUI
from harness.fixtures_routing import EMBEDDER, NO_BACKGROUND
from harness.fixtures_webui import upload
from harness.ollama_node import Model, OllamaNode
from harness.valkey import Valkey
from local.webui import Account, RunningWebUI, connections, open_webui

Json = dict[str, Any]

CACHED_YAML = """\
plugins:
  [model_alias_filter, response_cache_filter, response_cache_replay, gpu_router,
   ollama_pack_events, ollama_pack_gateway, usage_budgets]
model_provider:
  endpoint: "{node}"
  models:
    - {{name: gpt-4, local_name: ["mixtral:8x7b", "llama3:8b"]}}
    - {{name: "private:*", local_name: "llama3:8b"}}
    - {{name: text-embedding-3-small, local_name: "nomic-embed-text"}}
router: {{probe_seconds: 0.5}}
cache: {{ttl: 600}}
"""
FILTER = "response_cache_filter"
DIRECT = "qwen2.5:32b"  # a model of Open WebUI's own connection, which everybody may use
USER_SECONDS = 30


@dataclass(frozen=True)
class CachedWebUI:
    """Open WebUI with the cache, and what is around it.

    Attributes:
        webui: the server.
        node: the Ollama that answers, through the router and without it.
        admin: the API as the admin.
        student: the API as a plain user.
        account: the plain user's.
        other: the API as another plain user.
        valkey: the Redis that the cache may be told to use.
    """

    webui: RunningWebUI
    node: OllamaNode
    admin: OpenWebUI
    student: OpenWebUI
    account: Account
    other: OpenWebUI
    valkey: Valkey

    def set_valves(self, **valves: Any) -> None:
        """Set the filter's valves; those that are not named get their defaults."""
        self.admin.post(f"/api/v1/functions/id/{FILTER}/valves/update", valves)

    def generations(self) -> list[Json]:
        """The chats that the node got."""
        return [request.body or {} for request in self.node.requests if request.path == "/api/chat"]

    def counts(self) -> dict[str, float]:
        """What the cache of the one worker has counted."""
        told: dict[str, float] = self.admin.get("/ollama-pack/data")["cache"]["worker"]
        return told

    def stream(self, api: OpenWebUI, body: Json) -> Generator[Json, None, None]:
        """The chunks of a streamed answer, as they come."""
        with requests.post(
            f"{api.url}/api/chat/completions",
            json={"stream": True, **body},
            headers={"Authorization": f"Bearer {api.key}"},
            stream=True,
            timeout=USER_SECONDS,
        ) as answer:
            for line in answer.iter_lines(chunk_size=1):
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))


@pytest.fixture(scope="session")
def cached_webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CachedWebUI]:
    """The server, started once."""
    folder = tmp_path_factory.mktemp("cached")
    models = [Model(name) for name in ("llama3:8b", "private:1b", "staff:1b")]
    models += [Model(DIRECT, capabilities=("completion", "tools")), EMBEDDER]
    with (
        OllamaNode(models) as node,
        Valkey(tmp_path_factory.mktemp("valkey")) as valkey,
        open_webui(folder, environment=connections(ollama=(node.url,)) | NO_BACKGROUND) as webui,
    ):
        config = Path(folder / "pack.yaml")
        config.write_text(CACHED_YAML.format(node=node.url))
        done = upload(webui, str(config))
        assert done.returncode == 0, done.stdout + done.stderr
        account = webui.add_user("student", "student-password")
        other = webui.add_user("other", "other-password")
        admin = webui.as_admin()
        for model in (DIRECT, "private:1b", "llama3:8b"):  # without a row a model is for admins
            share(admin, model)
        users = [OpenWebUI(webui.url, each.token) for each in (account, other)]
        yield CachedWebUI(webui, node, admin, users[0], account, users[1], valkey)
        for api in (admin, *users):
            api.close()


# Python runs it when it starts: `time.time` of the whole server is ahead by what the file says, in seconds.
STEPPED_CLOCK = """
import os, time

real, file = time.time, os.environ["STEPPED_CLOCK"]

def stepped():
    with open(file) as opened:
        return real() + float(opened.read() or 0)

time.time = stepped
"""


@dataclass(frozen=True)
class SteppedWebUI:
    """A server whose clock can be stepped.

    Attributes:
        webui: the server.
        clock: the file that says by how much.
    """

    webui: RunningWebUI
    clock: Path

    def step(self, seconds: int) -> None:
        """Set the clock so far ahead of the real one."""
        new = self.clock.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.clock)


@pytest.fixture(scope="session")
def replica(cached_webui: CachedWebUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteppedWebUI]:
    """A second server on the first one's database."""
    folder = tmp_path_factory.mktemp("replica")
    (folder / "sitecustomize.py").write_text(STEPPED_CLOCK)
    clock = folder / "clock"
    clock.write_text("0")
    environment = connections(ollama=(cached_webui.node.url,)) | NO_BACKGROUND
    environment |= {
        "STATIC_DIR": str(folder / "static"),
        "PYTHONPATH": str(folder),
        "STEPPED_CLOCK": str(clock),
    }
    with open_webui(cached_webui.webui.log.parent, environment=environment) as webui:
        yield SteppedWebUI(webui, clock)


@pytest.fixture(params=["sqlite", "redis"])
def cached(request: pytest.FixtureRequest, cached_webui: CachedWebUI) -> CachedWebUI:
    """The same with an empty cache in each kind of store."""
    return emptied(cached_webui, request.param)


@pytest.fixture
def cached_file(cached_webui: CachedWebUI) -> CachedWebUI:
    """The same with an empty cache in SQLite, for what does not depend on the store."""
    return emptied(cached_webui, "sqlite")


def emptied(cached: CachedWebUI, store: str) -> CachedWebUI:
    """With a cache of its own, nothing lined up at the node, and no chats counted."""
    url = {"redis_url": cached.valkey.url} if store == "redis" else {}
    cached.set_valves(secret=uuid4().hex, **url)  # another secret is another, empty cache
    cached.node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
    cached.node.requests.clear()
    return cached


def share(admin: OpenWebUI, model: str, **more: Any) -> None:
    """Let everybody use a model that a connection offers."""
    grant = {"principal_type": "user", "principal_id": "*", "permission": "read"}
    form: Json = {"id": model, "name": model, "base_model_id": None, "meta": {}, "params": {}}
    admin.post("/api/v1/models/create", {**form, "access_grants": [grant], **more})


def at_once(*calls: Any) -> list[Any]:
    """What some calls give that are made at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [done.result() for done in [pool.submit(call) for call in calls]]
