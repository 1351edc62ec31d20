"""The Pipelines server without Open WebUI: the filter's own API, its valves, and nodes that fail."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.client import Pipelines
from deploy.errors import ServerError
from harness.fixtures_pipelines import FILTER, mount_filter, resolved, skip_unless_installed
from harness.ollama_node import Model, OllamaNode
from local.pipelines import RunningPipelines, pipelines_server
from local.processes import free_port
from ollama_pack.engines.ollama.installed import LOOK_SECONDS

Json = dict[str, Any]

TABLE = "gpt-4 = mixtral:8x7b, llama3:8b\ngpt-4 = llava:13b [vision]"


@pytest.fixture
def silent_node() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def set_valves(api: Pipelines, **valves: Any) -> Json:
    saved: Json = api.post(f"/{FILTER}/valves/update", valves)
    return saved


def test_inlet_changes_the_model_and_nothing_else(filter_api: Pipelines) -> None:
    """Would catch a filter that loses a part of the body on its way."""
    set_valves(filter_api, aliases=TABLE)
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}], "metadata": {"x": [1]}}
    answer = filter_api.post(f"/{FILTER}/filter/inlet", {"body": body, "user": {"id": "1", "role": "user"}})
    assert answer == body | {"model": "mixtral:8x7b"}


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ["gpt-4"]}, {"model": ""}])
def test_odd_bodies_come_back_as_they_are(filter_api: Pipelines, body: Json) -> None:
    """Would catch a chat that fails in the filter instead of with the model's own error."""
    set_valves(filter_api, aliases=TABLE)
    assert filter_api.post(f"/{FILTER}/filter/inlet", {"body": body}) == body


def test_chats_of_the_router_are_left_to_it(filter_api: Pipelines) -> None:
    """Would catch published aliases that go past `gpu_router`, to models that nobody has granted."""
    set_valves(filter_api, aliases="* = mixtral:8x7b")
    row = {"id": "gpt-4", "info": {"id": "gpt-4", "base_model_id": "gpu_router.gpt-4"}}
    assert resolved(filter_api, "gpt-4", metadata={"model": row}) == "gpt-4"
    assert resolved(filter_api, "gpu_router.llama3:8b") == "gpu_router.llama3:8b"
    assert resolved(filter_api, "gpt-4") == "mixtral:8x7b"


def test_table_on_one_line(filter_api: Pipelines) -> None:
    """Would catch a table that neither Open WebUI's one-line field nor a variable of a file can hold."""
    set_valves(filter_api, aliases="gpt-3.5* = llama3:8b； gpt-4 = mixtral:8x7b [tools]; gpt-4 = llama3:70b")
    assert resolved(filter_api, "gpt-3.5-turbo") == "llama3:8b"
    assert resolved(filter_api, "gpt-4") == "llama3:70b"
    assert resolved(filter_api, "gpt-4", tools=[{}]) == "mixtral:8x7b"


@pytest.mark.parametrize(
    ("aliases", "reason"),
    [
        (
            "gpt-4 = llama3:8b\ngpt-5 = gpt-6\ngpt-6 = gpt-5",
            r"row 2 \('gpt-5 = gpt-6'\): the alias leads back",
        ),
        ("a = b; c", r"row 2 \('c'\): write it as"),
        (
            "gpt-4 = llama3:8b [group=staff]",
            "group= is not known on the Pipelines server: use the model_alias",
        ),
    ],
    ids=["cycle", "form", "group"],
)
def test_bad_table_is_refused_with_its_reason(filter_api: Pipelines, aliases: str, reason: str) -> None:
    """Would catch a table that is stored although no request could use it, or is refused without a reason."""
    before = set_valves(filter_api, aliases=TABLE)
    with pytest.raises(ServerError, match=reason):
        set_valves(filter_api, aliases=aliases)
    assert filter_api.valves(FILTER) == before


def test_valves_survive_reload_and_restart(tmp_path: Path) -> None:
    """Would catch valves that are lost, or overruled by the environment once an admin has saved them."""
    skip_unless_installed()
    mount_filter(tmp_path)
    with pipelines_server(tmp_path) as server:
        api = server.api()
        saved = set_valves(api, aliases=TABLE, priority=3)
        stored = json.loads((server.folder / FILTER / "valves.json").read_text())
        assert stored == saved
        api.post("/pipelines/reload")
        assert api.valves(FILTER) == saved
        assert resolved(api, "gpt-4") == "mixtral:8x7b"
        api.close()
    environment = {"MODEL_ALIASES": "gpt-4 = other", "OLLAMA_BASE_URLS": "http://127.0.0.1:9"}
    with pipelines_server(tmp_path, environment=environment) as server:
        api = server.api()
        assert api.valves(FILTER) == saved
        assert resolved(api, "gpt-4") == "mixtral:8x7b"
        api.close()


def test_valves_start_from_the_environment(tmp_path: Path) -> None:
    """Would catch a container whose MODEL_ALIASES and OLLAMA_BASE_URLS do nothing."""
    skip_unless_installed()
    mount_filter(tmp_path)
    with OllamaNode([Model("llama3:8b")]) as node:
        environment = {
            "MODEL_ALIASES": "gpt-3.5-turbo = llama3:8b; gpt-4 = mixtral:8x7b, llama3:8b",
            "OLLAMA_BASE_URLS": f"http://127.0.0.1:{free_port()};{node.url}",
        }
        with pipelines_server(tmp_path, environment=environment) as server:
            api = server.api()
            assert resolved(api, "gpt-4") == "llama3:8b"
            api.close()
            assert json.loads((server.folder / FILTER / "valves.json").read_text()) == {}


def test_bad_table_in_the_environment_is_left_out(tmp_path: Path) -> None:
    """Would catch a typing error in a variable for which the server moves the file to `failed`."""
    skip_unless_installed()
    mount_filter(tmp_path)
    environment = {"MODEL_ALIASES": "gpt-4 = llama3:8b, llama3:8b", "OLLAMA_BASE_URLS": "http://127.0.0.1:9"}
    with pipelines_server(tmp_path, environment=environment) as server:
        api = server.api()
        valves = api.valves(FILTER)
        assert (valves["aliases"], valves["ollama_urls"]) == ("", "http://127.0.0.1:9")
        assert resolved(api, "gpt-4") == "gpt-4"
        api.close()
        assert not (server.folder / "failed").exists()
        assert "row 1 ('gpt-4 = llama3:8b, llama3:8b'): a model is named twice" in server.log.read_text()


def test_stored_valve_that_is_refused_is_left_out(tmp_path: Path) -> None:
    """Would catch a server that does not start, and has no pipeline left, for one line of an older table."""
    skip_unless_installed()
    mount_filter(tmp_path)
    stored = tmp_path / "pipelines" / FILTER / "valves.json"
    stored.parent.mkdir()
    stored.write_text(json.dumps({"aliases": "gpt-4 = llama3:8b, llama3:8b", "priority": 3}))
    environment = {"MODEL_ALIASES": "gpt-3.5 = llama3:8b; gpt-4 = llama3:8b\n"}  # as YAML's `>` folds it
    with pipelines_server(tmp_path, environment=environment) as server:
        api = server.api()
        valves = api.valves(FILTER)
        assert (valves["aliases"], valves["priority"]) == ("", 3)
        assert "aliases is left out: Value error, row 1" in server.log.read_text()
        with pytest.raises(ServerError, match="a model is named twice"):
            set_valves(api, aliases="gpt-4 = llama3:8b, llama3:8b")
        stored.write_text("{}")
        api.post("/pipelines/reload")
        assert resolved(api, "gpt-4") == "llama3:8b"
        api.close()


def test_candidate_that_is_installed_is_taken(filter_api: Pipelines, node: OllamaNode) -> None:
    """Would catch a filter that insists on a model that no node has."""
    set_valves(filter_api, aliases=TABLE, ollama_urls=f" {node.url}/ ")
    assert resolved(filter_api, "gpt-4") == "llama3:8b"


def test_first_candidate_is_taken_when_no_node_answers(filter_api: Pipelines) -> None:
    """Would catch a chat that fails because the node is down for the filter."""
    set_valves(filter_api, aliases=TABLE, ollama_urls=f"http://127.0.0.1:{free_port()}, not an address")
    assert resolved(filter_api, "gpt-4") == "mixtral:8x7b"


def test_saving_a_valve_keeps_what_is_known_of_a_node_that_is_down(filter_api: Pipelines) -> None:
    """Would catch a list that is thrown away just when it cannot be had again."""
    with OllamaNode([Model("llama3:8b")]) as node:
        set_valves(filter_api, aliases=TABLE, ollama_urls=node.url)
        assert resolved(filter_api, "gpt-4") == "llama3:8b"
    set_valves(filter_api, aliases=f"{TABLE}\ngpt-5 = mixtral:8x7b, llama3:8b", ollama_urls=node.url)
    assert resolved(filter_api, "gpt-5") == "llama3:8b"


def test_silent_node_delays_chats_by_its_time_limit_and_once(
    filter_api: Pipelines, alone: RunningPipelines, silent_node: str, node: OllamaNode
) -> None:
    """Would catch chats that wait for a node that never answers: longer, one after the other, or again."""
    set_valves(filter_api, aliases=TABLE, ollama_urls=f"{silent_node},{node.url}")

    def one_chat(_: int) -> str:
        api = alone.api()
        try:
            return resolved(api, "gpt-4")
        finally:
            api.close()

    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one_chat, range(8))) == {"llama3:8b"}
    assert LOOK_SECONDS / 2 < time.monotonic() - start < LOOK_SECONDS + 1
    start = time.monotonic()
    assert resolved(filter_api, "gpt-4") == "llama3:8b"
    assert time.monotonic() - start < LOOK_SECONDS / 2


def test_file_stays_where_it_was_put(filter_api: Pipelines, alone: RunningPipelines) -> None:
    """Would catch a file that the server moves to `failed` when it loads it again."""
    filter_api.post("/pipelines/reload")
    assert filter_api.installed()[FILTER]["type"] == "filter"
    assert (alone.folder / f"{FILTER}.py").exists()
    assert not (alone.folder / "failed").exists()
