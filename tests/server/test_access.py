"""Who may use what, by every name and endpoint, on the real server: the pack opens nothing by itself."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.client import OpenWebUI
from harness.chat_bodies import PIXEL
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
    "ollama": ("/ollama/api/chat", {"stream": False}),
    "ollama streamed": ("/ollama/api/chat", {}),
    "ollama openai": ("/ollama/v1/chat/completions", {}),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_name_has_the_access_of_the_model_that_answers(site: Site, endpoint: str) -> None:
    """Would catch a name by which somebody gets a model that is not for them, or a model withheld."""
    path, more = ENDPOINTS[endpoint]
    own = list(NAMES)
    if path == "/ollama/api/chat":
        own.remove("off:1b")  # Open WebUI itself does not look at the switch there
    elif path.startswith("/ollama"):
        own = []  # the scripted node has no such path
    names = [*own, *ROUTED]
    wrong = {
        (who, name): (found, expected(who, name))
        for who in site.accounts
        for name in names
        if (found := site.answering(who, path, name, **more)) != expected(who, name)
    }
    assert wrong == {}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_machine_options_of_a_row_count_for_plain_users(site: Site, endpoint: str) -> None:
    """Would catch users and admins asking for one model in two ways, so that it loads for each of them."""
    path, more = ENDPOINTS[endpoint]
    row = site.api.model_rows()["gpu_router.open:1b"]
    set_by_admin = {"keep_alive": "9m", "num_thread": 3}
    site.api.post("/api/v1/models/model/update", row | {"params": set_by_admin})
    try:
        for who in ("plain", "admin"):
            assert site.answering(who, path, "gpu_router.open:1b", **more) == "open:1b"
            asked = site.node.requests[-1].body or {}
            assert asked["keep_alive"] == "9m", who
            assert asked["options"].get("num_thread") == 3, who
        own = {"num_thread": 1, "keep_alive": -1}
        assert site.answering("plain", path, "gpu_router.open:1b", options=own, **more) == "open:1b"
        asked = site.node.requests[-1].body or {}
        assert [asked["keep_alive"], asked["options"].get("num_thread")] == ["9m", 3]
    finally:
        site.api.post("/api/v1/models/model/update", row)


@pytest.mark.parametrize("stream", [False, True])
def test_ollamas_conversations_are_for_every_kind_of_node(site: Site, *, stream: bool) -> None:
    """Would catch Ollama's own form on its way to `kind=openai` nodes, which find no pictures in it."""
    call = {"function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    messages: list[Json] = [
        {"role": "user", "content": "look", "images": [PIXEL]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_name": "clock"},
    ]
    body = {"model": "gpu_router.open:1b", "messages": messages, "options": {"seed": 5}, "stream": stream}
    answer = site.post("plain", "/ollama/api/chat", body)
    assert json.loads(answer.text.splitlines()[-1])["done"] is True
    sent = site.node.requests[-1].body or {}
    look, called, result = sent["messages"]
    assert (look["images"], sent["options"]["seed"]) == ([PIXEL], 5)
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]
    refused = site.post("plain", "/ollama/api/chat", {**body, "messages": [{"role": "user", "content": 5}]})
    assert (refused.status_code, "messages[0].content" in refused.json()["error"]) == (400, True)


def test_ollamas_list_has_what_can_be_asked_for(site: Site) -> None:
    """Would catch an Ollama client of a plain user that is not shown the aliases, or is shown more."""
    for who in site.accounts:
        listed = [model["model"] for model in site.get(who, "/ollama/api/tags")["models"]]
        assert len(listed) == len(set(listed))
        asked = {name for name in listed if site.answering(who, "/ollama/api/chat", name, stream=False)}
        assert asked | {"off:1b"} == {*listed} | {"off:1b"}  # its switch is not looked at there
        aliases = {name for name in (*ALIASES, "cond") if expected(who, name)}
        assert aliases <= set(listed)


def test_the_same_server_is_one_node(site: Site) -> None:
    """Would catch a server in two connections that counts twice, or a model that its list leaves out."""
    load = site.get("admin", "/api/system/load")["nodes"]
    assert sorted(node["url"] for node in load) == sorted((site.node.url, site.other.url))
    offered = {name for name in site.get("admin", "/api/models")["data"] for name in [name["id"]]}
    assert {name for name in offered if "listed" in name} == {"b.listed:1b", "gpu_router.b.listed:1b"}
    meta = site.api.model_rows()["gpu_router.b.listed:1b"]["meta"]
    assert [tag["name"] for tag in meta["tags"]] == ["fast"]


def test_a_workspace_model_on_top(site: Site) -> None:
    """Would catch a preset, open to everybody, that leads to a model which is not."""
    for base in ("gpu_router.staff:1b", "gpu_router.mixed", "gpu_router.only-staff"):
        name = f"preset-of-{base}"
        site.add_row(name, EVERYBODY, base=base)
        site.api.models(refresh=True)
        found = {who: site.answering(who, "/api/chat/completions", name) for who in site.accounts}
        assert found == {who: expected(who, base) for who in site.accounts}


def test_rows_that_lag_open_nothing(site: Site) -> None:
    """Would catch a router that relies on rows: these are wider than the models' own, by an admin's hand."""
    for name in ("gpu_router.staff:1b", "gpu_router.off:1b", "gpu_router.private:1b"):
        before = site.api.model_rows()[name]
        site.set_grants(name, EVERYBODY)
        if not before["is_active"]:
            site.api.post(f"/api/v1/models/model/toggle?id={name}")
        site.api.models(refresh=True)
        try:
            found = {who: site.answering(who, "/api/chat/completions", name) for who in site.accounts}
            assert found == {who: expected(who, name) for who in site.accounts}
        finally:
            site.set_grants(name, before["access_grants"])
            if not before["is_active"]:
                site.api.post(f"/api/v1/models/model/toggle?id={name}")


def test_a_change_holds_at_once(site: Site) -> None:
    """Would catch a chat that a user gets after an admin took the model away, or one withheld for long."""
    name = "gpu_router.open:1b"
    site.set_grants("open:1b", [])
    assert site.answering("plain", "/api/chat/completions", name) is None
    assert site.answering("plain", "/api/chat/completions", "mixed") is None
    assert site.answering("member", "/api/chat/completions", "mixed") == "staff:1b"
    site.set_grants("open:1b", EVERYBODY)
    eventually(lambda: site.answering("plain", "/api/chat/completions", name) == "open:1b")
    site.api.post(f"/api/v1/groups/id/{site.staff}/users/remove", {"user_ids": [site.accounts["member"].id]})
    assert site.answering("member", "/api/chat/completions", "mixed") == "open:1b"
    assert site.answering("member", "/api/chat/completions", "gpu_router.staff:1b") is None
    site.api.post(f"/api/v1/groups/id/{site.staff}/users/add", {"user_ids": [site.accounts["member"].id]})
    assert site.answering("member", "/api/chat/completions", "mixed") == "staff:1b"


def test_a_stated_audience(site: Site) -> None:
    """Would catch an audience that opens what an admin has closed, or a model under its own name."""
    site.set_valves(EVENTS, audience="public")
    try:
        eventually(
            lambda: site.grants("of-none") == {("user", "*")} and site.grants("cond") == {("user", "*")}
        )
        eventually(lambda: site.answering("plain", "/api/chat/completions", "of-none") == "none:1b")
        assert site.answering("plain", "/api/chat/completions", "gpu_router.none:1b") is None
        for who in site.accounts:
            assert site.answering(who, "/api/chat/completions", "cond") == CONDITIONED[who]
            for name in ("only-staff", "of-off", "private-then-staff", "mixed"):
                assert site.answering(who, "/api/chat/completions", name) == expected(who, name)
    finally:
        site.set_valves(EVENTS, audience="")
        eventually(lambda: site.grants("of-none") == set())
    assert site.answering("plain", "/api/chat/completions", "of-none") is None
