"""Who may use what, by every name and endpoint, on the real server: the pack opens nothing by itself."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.client import OpenWebUI
from harness.events_target import EVENTS, ROUTER, eventually, plugin_text
from harness.ollama_node import Model, OllamaNode
from local.webui import Account, RunningWebUI, connections, open_webui

Json = dict[str, Any]

EVERYBODY = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]
NO_BACKGROUND = dict.fromkeys(
    ("ENABLE_TITLE_GENERATION", "ENABLE_TAGS_GENERATION", "ENABLE_FOLLOW_UP_GENERATION"), "false"
)

# The models of the first node, and who may use each: what Open WebUI itself makes of its row.
WHO = {
    "open:1b": {"admin", "member", "plain"},
    "staff:1b": {"admin", "member"},
    "private:1b": {"admin"},  # a row without grants
    "none:1b": {"admin"},  # no row
    "off:1b": set[str](),  # open to everybody, and switched off
}
ALIASES = {
    "mixed": ("staff:1b", "open:1b"),
    "only-staff": ("staff:1b",),
    "of-none": ("none:1b",),
    "of-off": ("off:1b",),
    "off-then-open": ("off:1b", "open:1b"),
    "private-then-staff": ("private:1b", "staff:1b"),
}
CONDITIONED = {"admin": "open:1b", "member": "none:1b", "plain": "open:1b"}
TABLE = "\n".join([f"{name} = {', '.join(models)}" for name, models in ALIASES.items()])


@dataclass
class Site:
    """A deployment whose admin has set who may use which model, and then installed the pack.

    Attributes:
        webui: the server.
        node: its Ollama, with the models of `WHO`.
        other: a second Ollama, whose connection has a prefix, a list and tags; it is connected twice.
        staff: id of the group.
        accounts: role in these tests → account.
    """

    webui: RunningWebUI
    node: OllamaNode
    other: OllamaNode
    api: OpenWebUI
    staff: str = ""
    accounts: dict[str, Account] = field(default_factory=dict)

    def post(self, who: str, path: str, body: Json) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.accounts[who].token}"}
        return requests.post(self.webui.url + path, json=body, headers=headers, timeout=60)

    def get(self, who: str, path: str) -> Json:
        headers = {"Authorization": f"Bearer {self.accounts[who].token}"}
        found: Json = requests.get(self.webui.url + path, headers=headers, timeout=60).json()
        return found

    def answering(self, who: str, path: str, model: str, **more: Any) -> str | None:
        """The node's name of the model that answers somebody; None: nobody does, and no node was asked."""
        before = [len(node.requests) for node in (self.node, self.other)]
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, **more}
        answer = self.post(who, path, body)
        asked = self._chats(before)
        if "You said: hello" in "".join(_texts(answer)):
            assert len(asked) == 1, (who, path, model, asked)
            return asked[0]
        assert not asked, (who, path, model, asked, answer.text)
        return None

    def _chats(self, before: list[int]) -> list[str]:
        chats = {"/api/chat", "/v1/chat/completions"}
        return [
            str((request.body or {})["model"])
            for node, seen in zip((self.node, self.other), before, strict=True)
            for request in node.requests[seen:]
            if request.path in chats
        ]

    def add_row(
        self, model: str, grants: list[Json], *, base: str | None = None, active: bool = True
    ) -> None:
        form: Json = {"id": model, "name": model, "base_model_id": base, "meta": {}, "params": {}}
        self.api.post("/api/v1/models/create", form | {"access_grants": grants, "is_active": active})

    def set_grants(self, model: str, grants: list[Json]) -> None:
        form = {"id": model, "name": model, "access_grants": grants}
        self.api.post("/api/v1/models/model/access/update", form)

    def install(self, function: str, **valves: Any) -> None:
        form = {
            "id": function,
            "name": function,
            "meta": {"description": ""},
            "content": plugin_text(function),
        }
        self.api.post("/api/v1/functions/create", form)
        self.set_valves(function, **valves)
        self.api.post(f"/api/v1/functions/id/{function}/toggle")

    def set_valves(self, function: str, **valves: Any) -> None:
        self.api.post(f"/api/v1/functions/id/{function}/valves/update", valves)

    def grants(self, model: str) -> set[tuple[str, str]] | None:
        """Kind and id of those to whom a row gives a model; None: there is no row."""
        row = self.api.model_rows().get(model)
        found = row["access_grants"] if row else []
        return {(one["principal_type"], one["principal_id"]) for one in found} if row else None


def _texts(answer: requests.Response) -> list[str]:
    """Pieces of text in an answer of any form."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.extend(text for key in ("content", "text") if isinstance(text := value.get(key), str))
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    for line in answer.text.splitlines():
        try:
            walk(json.loads(line.removeprefix("data: ")))
        except ValueError:
            continue
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server, started once."""
    folder: Path = tmp_path_factory.mktemp("access")
    models = [Model(name) for name in WHO]
    others = [Model("listed:1b"), Model("unlisted:1b")]
    with (
        OllamaNode(models=models) as node,
        OllamaNode(models=others) as other,
        open_webui(folder, environment=connections(ollama=(node.url, other.url)) | NO_BACKGROUND) as webui,
    ):
        api = webui.as_admin()
        site = Site(webui, node, other, api)
        _connect(site)
        member, plain = (webui.add_user(name, f"{name}-password") for name in ("member", "plain"))
        site.accounts = {"admin": webui.admin, "member": member, "plain": plain}
        site.staff = str(api.post("/api/v1/groups/create", {"name": "staff", "description": ""})["id"])
        api.post(f"/api/v1/groups/id/{site.staff}/users/add", {"user_ids": [member.id]})
        to_staff = [{"principal_type": "group", "principal_id": site.staff, "permission": "read"}]
        site.add_row("open:1b", EVERYBODY)
        site.add_row("staff:1b", to_staff)
        site.add_row("private:1b", [])
        site.add_row("off:1b", EVERYBODY)
        api.post("/api/v1/models/model/toggle?id=off:1b")
        site.add_row("b.listed:1b", to_staff)
        site.install(
            ROUTER, aliases=f"{TABLE}\ncond = none:1b [group=staff]\ncond = open:1b", probe_seconds=0.5
        )
        site.install(EVENTS)
        eventually(
            lambda: site.grants("mixed") is not None and site.grants("gpu_router.b.listed:1b") is not None
        )
        api.models(refresh=True)
        yield site
        api.close()


def _connect(site: Site) -> None:
    """Give the second connection a prefix, a list and tags, and make a third one to the same server."""
    own = {"enable": True, "prefix_id": "b", "model_ids": ["listed:1b"], "tags": [{"name": "fast"}]}
    form = {
        "ENABLE_OLLAMA_API": True,
        "OLLAMA_BASE_URLS": [site.node.url, site.other.url, f"{site.other.url}/"],
        "OLLAMA_API_CONFIGS": {"0": {"enable": True}, "1": own, "2": own},
    }
    site.api.post("/ollama/config/update", form)
    site.api.models(refresh=True)


def expected(who: str, name: str) -> str | None:
    """The model that shall answer somebody who asks for a name."""
    name = name.removeprefix("gpu_router.")
    if name == "b.listed:1b":
        return "listed:1b" if who != "plain" else None
    if name == "cond":  # outsiders get the model without a condition; `none:1b` has no row: admins alone
        return "open:1b"
    return next((model for model in ALIASES.get(name, (name,)) if who in WHO.get(model, set())), None)


NAMES = [*WHO, "b.listed:1b"]
ROUTED = [
    *(f"gpu_router.{name}" for name in NAMES),
    *ALIASES,
    *(f"gpu_router.{name}" for name in ALIASES),
    "cond",
]
ENDPOINTS: dict[str, tuple[str, Json]] = {
    "chat": ("/api/chat/completions", {}),
    "streamed": ("/api/chat/completions", {"stream": True}),
    "v1": ("/api/v1/chat/completions", {}),
    "messages": ("/api/v1/messages", {}),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_name_has_the_access_of_the_model_that_answers(site: Site, endpoint: str) -> None:
    """Would catch a name by which somebody gets a model that is not for them, or a model withheld."""
    path, more = ENDPOINTS[endpoint]
    wrong = {
        (who, name): (found, expected(who, name))
        for who in site.accounts
        for name in [*NAMES, *ROUTED]
        if (found := site.answering(who, path, name, **more)) != expected(who, name)
    }
    assert wrong == {}
