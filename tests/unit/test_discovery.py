"""Rows that stand for what DNS names: what becomes of them, and a real DNS server that is asked."""

import asyncio

import pytest

from harness.dns_server import ServiceDns
from ollama_pack.routing.errors import NodeTableError
from ollama_pack.routing.nodes import parse_nodes
from ollama_pack.services.discovery import NodeDiscovery, expanded

ROW = "pool dns+srv://_ollama._tcp.example.org slots=2 key=secret"


def test_servers_become_rows() -> None:
    """Would catch a server twice, two nodes of one name, or a setting of the row that is lost."""
    (row,) = parse_nodes(ROW)
    fixed = parse_nodes("gpu0 http://b.pods:11434")
    servers = (("a.pods", 11434), ("b.pods", 11434), ("b.pods", 11435), ("10.1.2.3", 1), ("a.other", 1))
    found = expanded((row, *fixed), {row.url: servers})
    assert [(node.name, node.url) for node in found] == [
        ("pool-a", "http://a.pods:11434"),
        ("pool-b", "http://b.pods:11435"),
        ("pool-10.1.2.3", "http://10.1.2.3:1"),
        ("pool-a-1", "http://a.other:1"),
        ("gpu0", "http://b.pods:11434"),
    ]
    assert {(node.slots, node.key) for node in found[:-1]} == {(2, "secret")}


@pytest.mark.parametrize(
    "address", ["dns+srv://", "dns+srv://nothing", "dns+srv://a.b/c.d", "dns+srv://a.b?x"]
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
