"""Nodes that DNS names: the row `pool dns+srv://_ollama._tcp.example.org` is one for each server there."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from ollama_pack.base.single_flight import SingleFlight
from ollama_pack.routing.nodes import MAX_NODES, SRV, NodeRow

discovery_log = logging.getLogger(__name__)

FIRST_ANSWER_SECONDS = 3.0  # that a chat waits where nothing is known of a name yet
Servers = tuple[tuple[str, int], ...]  # host and port, in order
_NOT_IN_A_NAME = re.compile(r"[^\w.-]")
_LONGEST_NAME = 64


async def resolve_srv(address: str) -> Servers:
    """The servers of a name, asked of this machine's DNS servers or of the one in the address.

    Args:
        address: as it stands in a row: `dns+srv://name`, or `dns+srv://10.0.0.2:8600/name`.

    Raises:
        Exception: aiodns is not installed, or the name has none now.
    """
    from aiodns import DNSResolver  # noqa: PLC0415 - Open WebUI installs it, the Pipelines server does not

    server, _, name = address.removeprefix(SRV).rpartition("/")
    options: dict[str, Any] = {"timeout": 1.0, "tries": 2}
    if server:
        host, _, port = server.rpartition(":") if server.count(":") == 1 else (server, "", "53")
        options |= {"nameservers": [host], "udp_port": int(port), "tcp_port": int(port)}
    resolver = DNSResolver(**options)
    try:
        found = await resolver.query(name, "SRV")
    finally:
        await resolver.close()
    return tuple(sorted({(str(one.host).rstrip("."), int(one.port)) for one in found}))


class NodeDiscovery:
    """Keeps up what DNS says. What it said last holds while it does not answer. Lives on one event loop."""

    def __init__(
        self,
        resolve: Callable[[str], Awaitable[Servers]] = resolve_srv,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            resolve: as `resolve_srv`.
            clock: monotonic seconds.
        """
        self._resolve = resolve
        self._servers: dict[str, Servers] = {}
        self._faults: dict[str, str] = {}
        self._names: Sequence[str] = ()
        self._look = SingleFlight(self._ask_all, 0, clock)
        self._made: tuple[tuple[NodeRow, ...], dict[str, Servers], tuple[NodeRow, ...]] = ((), {}, ())

    async def rows(self, rows: tuple[NodeRow, ...], seconds: float) -> tuple[NodeRow, ...]:
        """The rows, with one for each server in place of one with a name.

        Args:
            rows: as the admin wrote them.
            seconds: between two questions to DNS.
        """
        names = [row.url for row in rows if row.url.startswith(SRV)]
        if not names:
            return rows
        is_news = not self._servers.keys() >= set(names)
        self._names = names
        if is_news or self._look.age >= seconds:
            looking = self._look.renew()
            if is_news or self._look.age >= 2 * seconds:
                await asyncio.wait({looking}, timeout=FIRST_ANSWER_SECONDS)
        if self._made[:2] != (rows, self._servers):
            self._made = rows, dict(self._servers), expanded(rows, self._servers)
        return self._made[2]

    async def _ask_all(self) -> None:
        await asyncio.gather(*map(self._ask_one, self._names))

    async def _ask_one(self, name: str) -> None:
        try:
            self._servers[name] = await self._resolve(name)
            self._faults.pop(name, None)
        except Exception as error:  # noqa: BLE001 - whatever it is, what is known holds
            self._servers.setdefault(name, ())
            fault = f"{type(error).__name__}: {error}"
            if self._faults.get(name) != fault:
                discovery_log.warning("The nodes at %s could not be looked up: %s", name, fault)
            self._faults[name] = fault


def expanded(rows: Sequence[NodeRow], servers: dict[str, Servers]) -> tuple[NodeRow, ...]:
    """The rows, with one for each server in place of one with a name; none whose name or address is taken."""
    found: list[NodeRow] = []
    names = {row.name for row in rows}
    addresses = {row.url for row in rows}
    for row in rows:
        if not row.url.startswith(SRV):
            found.append(row)
            continue
        for host, port in servers.get(row.url, ()):
            url = f"http://{host}:{port}"
            name = _node_name(row.name, host, "")
            name = _node_name(row.name, host, f"-{port}") if name in names else name
            if url not in addresses and name not in names and len(found) < MAX_NODES:
                names.add(name)
                addresses.add(url)
                found.append(replace(row, name=name, url=url))
    return tuple(found)


def _node_name(row: str, host: str, end: str) -> str:
    """`gpu-ollama-0` for the host ollama-0.ollama.svc; an IP address is kept whole."""
    label = host if _is_ip(host) else host.partition(".")[0]
    return _NOT_IN_A_NAME.sub("-", f"{row}-{label}")[: _LONGEST_NAME - len(end)] + end


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
