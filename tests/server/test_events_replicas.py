"""Two Open WebUIs on one database: each keeps its own routes, and they do not undo each other's work."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.client import OpenWebUI
from harness.events_target import EVENTS, EVERYBODY, LOAD, EventsTarget, eventually, plugin_text
from harness.ollama_node import OllamaNode
from harness.upload_target import Target
from local.webui import RunningWebUI, connections, open_webui

LOAD_PATH = "/api/system/load"
BRISK = plugin_text().replace("LOOK_SECONDS = 30.0", "LOOK_SECONDS = 0.5")
TOLD = {"models": ["llama3:8b", "qwen2.5:32b"], "aliases": ["gpt-4", "gpt-4o"]}
TABLE = "gpt-4 = llama3:8b\ngpt-4o = qwen2.5:32b"


@pytest.fixture(scope="module")
def replica(
    target_webui: RunningWebUI, target_node: OllamaNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningWebUI]:
    """A second server on the first one's database."""
    static = tmp_path_factory.mktemp("static")
    environment = connections(ollama=(target_node.url,)) | {"STATIC_DIR": str(static)}
    with open_webui(target_webui.log.parent, environment=environment) as webui:
        yield webui


@pytest.fixture
def events(target: Target, tmp_path: Path, replica: RunningWebUI) -> Iterator[EventsTarget]:
    events = EventsTarget(target, tmp_path)
    events.install_router(table=TABLE, **TOLD)
    yield events
    events.uninstall()
    eventually(lambda: not answers(events, replica))


def answers(events: EventsTarget, replica: RunningWebUI) -> bool:
    """Whether the second server has the route."""
    answer = events.get(LOAD_PATH, events.admin, replica.url)
    return answer.ok and "json" in answer.headers["content-type"]


def make_an_event(replica: RunningWebUI) -> None:
    """As anybody does who signs in there."""
    OpenWebUI.sign_in(replica.url, "admin@example.org", "admin-password").close()


def test_both_publish_and_neither_repeats(events: EventsTarget, replica: RunningWebUI) -> None:
    """Would catch replicas that fail on each other's rows, or write at every look."""
    events.install(BRISK, audience="public")
    make_an_event(replica)
    with ThreadPoolExecutor(2) as pool:  # both look at the same moment
        list(pool.map(lambda act: act(), [events.wake, lambda: make_an_event(replica)]))
    eventually(lambda: answers(events, replica) and events.grants("gpt-4o") == EVERYBODY)
    eventually(lambda: len(events.target.rows) == 6)
    before = events.target.rows
    here = events.data()["publishing"]["looked_at"]

    def there() -> float | None:
        told = events.get("/ollama-pack/data", events.admin, replica.url).json()
        looked_at: float | None = told["publishing"]["looked_at"]
        return looked_at

    first = there()
    eventually(lambda: events.data()["publishing"]["looked_at"] != here and there() != first)
    assert events.target.rows == before


def test_switching_off_reaches_the_other(events: EventsTarget, replica: RunningWebUI) -> None:
    """Would catch routes that answer on at replicas which nobody tells that the function is off."""
    events.install()
    make_an_event(replica)
    eventually(lambda: answers(events, replica))
    events.toggle(EVENTS)
    eventually(lambda: not answers(events, replica))


def test_update_reaches_the_other(events: EventsTarget, replica: RunningWebUI) -> None:
    """Would catch a replica that runs the old code until it is restarted."""
    events.install(BRISK)
    make_an_event(replica)
    eventually(lambda: answers(events, replica))
    assert events.get(LOAD_PATH, events.admin, replica.url).json() == LOAD
    events.update(
        EVENTS, BRISK.replace('return {**usage, "nodes": nodes', 'return {"version": 2, "nodes": nodes')
    )

    def has_new_code() -> bool:
        told = events.get(LOAD_PATH, events.admin, replica.url).json()
        return bool(told.get("version") == 2)

    eventually(has_new_code)


def test_valves_reach_the_other(events: EventsTarget, replica: RunningWebUI) -> None:
    """Would catch a replica that goes on publishing what an admin withdrew."""
    events.install(BRISK)
    make_an_event(replica)
    eventually(lambda: answers(events, replica) and len(events.target.rows) == 6)
    events.set_valves(EVENTS, publish_aliases=False, routes=False)
    eventually(lambda: not answers(events, replica))
    assert events.target.rows == {}
