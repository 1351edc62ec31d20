"""An Open WebUI for the uploader and the events function alone: the session's shared one stays as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.events_target import EventsTarget
from harness.ollama_node import OllamaNode
from harness.recording_proxy import RecordingProxy
from harness.upload_target import MODELS, Target
from harness.valkey import Valkey
from local.webui import Account, RunningWebUI, connections, open_webui


@pytest.fixture(scope="session")
def target_node() -> Iterator[OllamaNode]:
    """The scripted Ollama behind it."""
    with OllamaNode(models=MODELS) as node:
        yield node


@pytest.fixture(scope="session")
def target_webui(target_node: OllamaNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWebUI]:
    """The server, started once."""
    folder = tmp_path_factory.mktemp("target")
    with open_webui(folder, environment=connections(ollama=(target_node.url,))) as webui:
        yield webui


@pytest.fixture(scope="session")
def pupil(target_webui: RunningWebUI) -> Account:
    """A plain user of it."""
    return target_webui.add_user("pupil", "pupil-password")


@pytest.fixture
def target(target_webui: RunningWebUI, target_node: OllamaNode, tmp_path: Path) -> Iterator[Target]:
    """The server with nothing installed."""
    api = target_webui.as_admin()
    target = Target(target_webui, target_node, api, tmp_path)
    target.clear()
    yield target
    api.close()


@pytest.fixture
def proxy(target_webui: RunningWebUI) -> Iterator[RecordingProxy]:
    """A way to the server that keeps what the uploader asks, and fails when told to."""
    with RecordingProxy(target_webui.url) as proxy:
        yield proxy


@pytest.fixture
def events(target: Target, tmp_path: Path) -> Iterator[EventsTarget]:
    events = EventsTarget(target, tmp_path)
    yield events
    events.uninstall()


@pytest.fixture
def server(valkey: Valkey) -> Valkey:
    """An empty Valkey that runs."""
    valkey.start()
    with valkey.client() as client:
        client.flushall()
    return valkey
