"""Rows that stand for several servers, which a real DNS server and a scripted Kubernetes API name."""

import asyncio
import json
import os
import re
from pathlib import Path

import pytest

from harness.certificates import self_signed
from harness.dns_server import ServiceDns
from harness.hostile_server import HostileServer, http_answer
from harness.kubernetes_api import PodsApi, pod
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.errors import NodeTableError
from ollama_pack.routing.nodes import parse_nodes
from ollama_pack.services.discovery import (
    NodeDiscovery,
    Server,
    expanded,
    ready_pods,
    resolve_pods,
    resolve_srv,
)
from ollama_pack.services.router_host import RouterHost, _environment_counts

ROW = "pool dns+srv://_ollama._tcp.example.org slots=2 key=secret"


def test_servers_become_rows() -> None:
    """Would catch a server twice, two nodes of one name, or a setting of the row that is lost."""
    (row,) = parse_nodes(ROW)
    fixed = parse_nodes("gpu0 http://b.pods:11434")
    servers = (("a.pods", 11434), ("b.pods", 11434), ("b.pods", 11435), ("10.1.2.3", 1), ("a.other", 1))
    found = expanded((row, *fixed), {row.url: tuple(Server(*one) for one in servers)})
    assert [(node.name, node.url) for node in found] == [
        ("pool-a", "http://a.pods:11434"),
        ("pool-b", "http://b.pods:11435"),
        ("pool-10.1.2.3", "http://10.1.2.3:1"),
        ("pool-a-1", "http://a.other:1"),
        ("gpu0", "http://b.pods:11434"),
    ]
    assert {(node.slots, node.key) for node in found[:-1]} == {(2, "secret")}


@pytest.mark.parametrize(
    ("row", "servers"),
    [
        ("gpus dns+srv://_ollama._tcp.example.org", [f"gpu.site{number}.example.org" for number in range(4)]),
        (
            "ollama-students k8s://default/app=ollama:11434",
            [
                f"release-name-open-webui-ollama-gpu-inference-7d4b9c6f5d-{end}"
                for end in ("x2x", "kq9", "mt4")
            ],
        ),
        (f"{'n' * 64} k8s://default/app=ollama:11434", ["ollama-0", "ollama-1", "ollama-2"]),
    ],
    ids=["hosts that begin alike", "pods with long names", "a long name of the row"],
)
def test_no_server_is_left_out_for_its_name(row: str, servers: list[str]) -> None:
    """Would catch the third of several servers whose names begin alike, which was no node at all."""
    (parsed,) = parse_nodes(row)
    found = expanded(
        (parsed,),
        {
            parsed.url: tuple(
                Server(name, 11434) if "." in name else Server(f"10.0.0.{number}", 11434, name)
                for number, name in enumerate(servers)
            )
        },
    )
    assert len({node.name for node in found}) == len(servers)
    for node in found:
        assert parse_nodes(f"{node.name} {node.url}")[0].name == node.name


@pytest.mark.parametrize(
    "address",
    [
        "dns+srv://",
        "dns+srv://nothing",
        "dns+srv://a.b/c.d",
        "dns+srv://a.b?x",
        "k8s://",
        "k8s://default",
        "k8s://default/app=ollama",
        "k8s:///app=ollama:11434",
        "k8s://default/../secrets?app=ollama:0",
    ],
)
def test_odd_names_are_refused(address: str) -> None:
    """Would catch a row that is accepted and never finds a node."""
    with pytest.raises(NodeTableError, match="write it as"):
        parse_nodes(f"pool {address}")


def test_what_dns_says_is_kept_up() -> None:
    """Would catch a server that is never found, or all of them lost because DNS is down for a moment."""
    now = 0.0

    async def scenario() -> list[list[str]]:
        nonlocal now
        seen = []
        discovery = NodeDiscovery(clock=lambda: now)
        with ServiceDns() as dns:
            rows = parse_nodes(f"pool {dns.address}")
            for later, hosts in ((0, "a"), (1, "ab"), (10, "ab"), (10, ""), (10, "b")):
                now += later
                dns.servers = [(f"{host}.pods", 1) for host in hosts]
                seen.append([row.name for row in await discovery.rows(rows, 5)])
        return seen

    both = ["pool-a", "pool-b"]
    assert asyncio.run(scenario()) == [["pool-a"], ["pool-a"], both, both, ["pool-b"]]


def test_a_service_that_dns_says_is_not_there() -> None:
    """Would catch a node without a host, of the target `.` with which DNS says that there is no server."""

    async def scenario() -> tuple[Server, ...]:
        with ServiceDns() as dns:
            dns.servers = [(".", 0)]
            return await resolve_srv(dns.address)

    assert asyncio.run(scenario()) == ()


async def found_in(api: PodsApi, address: str = "k8s://default/app=ollama,tier=gpu:11434") -> list[str]:
    discovery = NodeDiscovery(lambda one: resolve_pods(one, api.account))
    rows = await discovery.rows(parse_nodes(f"pool {address} slots=2"), 5)
    return [f"{row.name} {row.url}" for row in rows]


def test_pods_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch chats for pods that start or end, and IPv6 addresses that are no addresses."""

    async def scenario() -> list[str]:
        async with PodsApi(self_signed(tmp_path), monkeypatch) as api:
            api.pods = [
                pod("ollama-0", "10.0.0.5"),
                pod("ollama-1", "fd00::7"),
                pod("ollama-2", "10.0.0.6", ready=False),
                pod("ollama-3", "10.0.0.7", ends=True),
                pod("ollama-4", ""),
                {"metadata": None},
                "no pod",
            ]
            rows = await found_in(api)
            assert api.asked == [
                {
                    "path": "/api/v1/namespaces/default/pods",
                    "labelSelector": "app=ollama,tier=gpu",
                    "authorization": "Bearer account-token",
                }
            ]
        return rows

    assert asyncio.run(scenario()) == [
        "pool-ollama-0 http://10.0.0.5:11434",
        "pool-ollama-1 http://[fd00::7]:11434",
    ]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "may not list pods in default (HTTP 403): give it a Role with the verb list on pods"),
        (500, "answered with HTTP 500"),
        (302, "answered with HTTP 302"),
    ],
)
def test_a_refusal_is_explained(
    status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a cluster that refuses in silence, or a redirect that takes the token elsewhere."""

    async def scenario() -> list[str]:
        async with PodsApi(self_signed(tmp_path), monkeypatch) as api:
            api.status = status
            return await found_in(api)

    assert asyncio.run(scenario()) == []
    assert said in caplog.text
    assert "account-token" not in caplog.text


def test_outside_a_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(OSError, match="does not run in Kubernetes"):
        asyncio.run(resolve_pods("k8s://default/app=ollama:11434"))


def test_nobody_gets_the_cookies_of_another_user() -> None:
    """Would catch a gateway's cookie for one user that others send, or that ties all chats to one engine."""
    hello = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}

    def gateway(_method: str, path: str) -> bytes:
        if path == "/v1/models":
            return http_answer(b'{"object": "list", "data": [{"id": "m", "object": "model"}]}')
        events = f"data: {json.dumps(hello)}\n\ndata: [DONE]\n\n".encode()
        return http_answer(events, Content_Type="text/event-stream", Set_Cookie="session=first; Path=/")

    async def scenario(url: str) -> None:
        host = RouterHost()
        router = await host.router(parse_nodes(f"gateway {url} kind=openai"), RouterSettings())
        for user in ("first", "second"):
            body = {"messages": [{"role": "user", "content": "Hello"}]}
            async for _ in router.answer(body, ["m"], ReplyHead("1", 1, "m"), user=user):
                pass
        await host.close()

    with HostileServer(gateway) as server:  # by name: no cookies are kept of an IP address
        asyncio.run(scenario(server.url.replace("127.0.0.1", "localhost")))
        assert sum("/chat/completions" in head for head in server.heads) == 2
        assert not [head for head in server.heads if "cookie:" in head.lower()]


@pytest.mark.parametrize("answer", [None, [], {}, {"items": None}, {"items": {}}])
def test_no_list_of_pods_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match=re.escape("did not answer with a list of pods")):
        ready_pods(answer, 1)


@pytest.mark.parametrize(
    ("environment", "counts"),
    [({}, False), ({"NO_PROXY": "localhost"}, False), ({"HTTPS_PROXY": "http://proxy.example:3128"}, True)],
)
def test_the_environment_counts_where_it_names_a_proxy(
    environment: dict[str, str],
    counts: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Would catch nodes behind a proxy that the router does not go through."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _environment_counts() is counts
    (tmp_path / "netrc").write_text("machine gpu0.example login a password b\n")
    assert _environment_counts()
