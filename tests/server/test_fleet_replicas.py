"""Two Open WebUIs on one database, whose routers share their nodes over a real Valkey."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from deploy.client import OpenWebUI
from harness.crowds import crowd, use_slots_once, wait_until_met
from harness.fixtures_routing import NO_BACKGROUND, RoutedWebUI
from harness.fixtures_webui import upload
from harness.valkey import Valkey
from local.webui import RunningWebUI, connections, open_webui

SLOTS = 2  # of each node, as its row says


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
    wait_until_met(valkey, len(apis))
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


def ask(api: OpenWebUI) -> str:
    """The text of an answer."""
    chat = {"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]}
    return str(api.post("/api/chat/completions", chat)["choices"][0]["message"]["content"])


def through(apis: list[OpenWebUI]) -> list[partial[str]]:
    """A way to ask each server."""
    return [partial(ask, api) for api in apis]


def test_two_replicas_use_no_slot_twice(routed: RoutedWebUI, sharing: list[OpenWebUI]) -> None:
    """Would catch replicas that do not hear each other: each would fill all slots of both nodes."""
    assert use_slots_once(routed.nodes, through(sharing), SLOTS)


def test_chats_of_both_go_on_without_redis(
    routed: RoutedWebUI, sharing: list[OpenWebUI], valkey: Valkey
) -> None:
    """Would catch a Redis that takes the chats with it, or replicas that stay apart when it is back."""
    valkey.kill()
    crowd(routed.nodes, through(sharing))
    valkey.start()
    wait_until_met(valkey, len(sharing))
    assert use_slots_once(routed.nodes, through(sharing), SLOTS)
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
