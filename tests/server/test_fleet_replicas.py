"""Two Open WebUIs on one database, whose routers share their nodes over a real Valkey."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from deploy.client import OpenWebUI
from harness.fixtures_routing import NO_BACKGROUND, RoutedWebUI
from harness.fixtures_webui import upload
from harness.ollama_node import Answer
from harness.valkey import Valkey
from local.webui import RunningWebUI, connections, open_webui

SLOTS = 2  # of each node, as its row says
CHATS = 12
TRIES = 4
EVENTS = "ollama_pack:{fleet}:1:events"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def replica(routed: RoutedWebUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWebUI]:
    """A second server on the first one's database."""
    static = tmp_path_factory.mktemp("static")
    environment = connections() | NO_BACKGROUND | {"STATIC_DIR": str(static)}
    with open_webui(routed.webui.log.parent, environment=environment) as webui:
        yield webui


@pytest.fixture
def sharing(routed: RoutedWebUI, replica: RunningWebUI, valkey: Valkey) -> Iterator[list[OpenWebUI]]:
    """The API of both servers as a plain user, once their routers have met."""
    change(routed, redis_url=valkey.url, max_queue=64)
    apis = [OpenWebUI(url, routed.account.token) for url in (routed.webui.url, replica.url)]
    for api in apis:
        ask(api)  # who is asked has a router with the valves as they are now
    with valkey.client() as client:
        client.flushall()  # what earlier routers said
    pause = threading.Event()
    while len(workers(valkey)) < len(apis):
        pause.wait(0.2)
    yield apis
    for api in apis:
        api.close()
    valkey.start()
    assert upload(routed.webui, str(routed.pack_yaml)).returncode == 0
    change(routed, redis_url="")


def change(routed: RoutedWebUI, **valves: Any) -> None:
    """Save some valves of the router."""
    old = routed.admin.valves("functions", "gpu_router")
    routed.admin.post("/api/v1/functions/id/gpu_router/valves/update", old | valves)


def workers(valkey: Valkey) -> set[str]:
    """Who has told anything."""
    with valkey.client() as client:
        return {json.loads(fields[b"m"])["w"] for _, fields in client.xrange(EVENTS)}


def ask(api: OpenWebUI) -> Json:
    answer: Json = api.post(
        "/api/chat/completions", {"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]}
    )
    return answer


def crowd(routed: RoutedWebUI, apis: list[OpenWebUI]) -> list[int]:
    """Many chats at once through both servers: all are answered. How many each node had at most at once."""
    before = [len(node.records) for node in routed.nodes]
    for node in routed.nodes:
        node.enqueue(*[Answer(["a ", "b"], pause=0.2)] * CHATS)
    with ThreadPoolExecutor(CHATS) as pool:
        answers = list(pool.map(ask, apis * (CHATS // len(apis))))
    for node in routed.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["a b"] * CHATS
    most = []
    for node, count in zip(routed.nodes, before, strict=True):
        spans = [(record.came, record.ended or record.came) for record in node.records[count:]]
        most.append(max((sum(came <= at < end for came, end in spans) for at, _ in spans), default=0))
    return most


def shares(routed: RoutedWebUI, apis: list[OpenWebUI]) -> bool:
    """Whether each slot is used once. On a busy machine Redis may be too slow, and chats go on without."""
    return any(crowd(routed, apis) == [SLOTS, SLOTS] for _ in range(TRIES))


def test_two_replicas_use_no_slot_twice(routed: RoutedWebUI, sharing: list[OpenWebUI]) -> None:
    """Would catch replicas that do not hear each other: each would fill all slots of both nodes."""
    assert shares(routed, sharing)


def test_chats_of_both_go_on_without_redis(
    routed: RoutedWebUI, sharing: list[OpenWebUI], valkey: Valkey
) -> None:
    """Would catch a Redis that takes the chats with it, or replicas that stay apart when it is back."""
    valkey.kill()
    crowd(routed, sharing)
    valkey.start()
    pause = threading.Event()
    while len(workers(valkey)) < len(sharing):
        pause.wait(0.2)
    assert shares(routed, sharing)
    assert routed.webui.log.read_text().count("(redis_url) does not answer") <= len(sharing)


def test_the_address_of_redis_is_not_printed(routed: RoutedWebUI) -> None:
    """Would catch a password of Redis in what upload.py prints, in the plan and in an error."""
    text = routed.pack_yaml.read_text()
    changed = routed.pack_yaml.with_name("redis.yaml")
    for url, status in (
        ("redis://:hush%2Fhush@redis:6379/0", 0),
        ("redis://:hush/hush@redis:6379/0", 1),  # what comes before the slash would be the port
        ("http://:hush/hush@redis", 1),
    ):
        changed.write_text(text.replace("router: {", f"router: {{redis_url: '{url}', "))
        shown = upload(routed.webui, str(changed), "--dry-run")
        assert shown.returncode == status
        assert "redis_url" in shown.stdout + shown.stderr
        assert "hush" not in shown.stdout + shown.stderr
