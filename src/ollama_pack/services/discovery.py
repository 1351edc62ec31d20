"""Nodes that DNS or Kubernetes knows: one row of the table stands for each server that is found.

`pool dns+srv://_ollama._tcp.example.org` is each server of that record, `pods k8s://default/app=ollama:11434`
each ready pod with that label.
"""

import asyncio
import logging
import os
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ollama_pack.base.messages import message
from ollama_pack.base.single_flight import SingleFlight
from ollama_pack.routing.nodes import DISCOVERED, MAX_NODES, PODS, SRV, NodeRow

discovery_log = logging.getLogger(__name__)

FIRST_ANSWER_SECONDS = 3.0  # that a chat waits where nothing is known of a name yet
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where Kubernetes puts a pod's own account
_NOT_IN_A_NAME = re.compile(r"[^\w.-]")
_LONGEST_NAME = 64
_LIST_SECONDS = 5.0
_LIST_OCTETS = 32 * 1024 * 1024  # a pod's entry has a few kB


class Server(NamedTuple):
    """One of the servers that a row stands for.

    Attributes:
        host: a name or an IP address.
        port: its port.
        label: what the node is called after; empty: after the host.
    """

    host: str
    port: int
    label: str = ""


Servers = tuple[Server, ...]  # in order


async def resolve(address: str) -> Servers:
    """The servers of a row now: `resolve_srv` or `resolve_pods`."""
    return await (resolve_pods(address) if address.startswith(PODS) else resolve_srv(address))


async def resolve_srv(address: str) -> Servers:
    """The servers of a name, asked of this machine's DNS servers or of the one in the address.

    Args:
        address: as it stands in a row: `dns+srv://name`, or `dns+srv://10.0.0.2:8600/name`.

    Raises:
        Exception: aiodns is not installed, or the name is not known now.
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
    hosts = {Server(str(one.host).rstrip("."), int(one.port)) for one in found}
    return tuple(sorted(server for server in hosts if server.host))  # `.` is "there is none" (RFC 2782)


async def resolve_pods(address: str, account: Path = ACCOUNT) -> Servers:
    """The ready pods with certain labels, asked of the cluster that this process runs in.

    Args:
        address: `k8s://NAMESPACE/SELECTOR:PORT`, the selector as `kubectl get pods -l` takes it.
        account: the folder with the token, and with the certificate that the API's is signed with.

    Raises:
        OSError: this is no pod, the API does not answer, or the account may not list pods there.
        ValueError: the API's answer is no list of pods.
    """
    from aiohttp import ClientSession, ClientTimeout  # noqa: PLC0415 - upload.py loads this and asks nobody

    selected, _, port = address.removeprefix(PODS).rpartition(":")
    namespace, _, selector = selected.partition("/")
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    if not host:
        raise OSError(message("this process does not run in Kubernetes: KUBERNETES_SERVICE_HOST is not set"))
    api = f"https://{_in_url(host)}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"
    token = (account / "token").read_text().strip()  # Kubernetes replaces it within the hour
    async with (
        ClientSession(timeout=ClientTimeout(total=_LIST_SECONDS)) as session,
        session.get(
            f"{api}/api/v1/namespaces/{namespace}/pods",
            params={"labelSelector": selector, "limit": str(MAX_NODES)},
            headers={"Authorization": f"Bearer {token}"},
            ssl=ssl.create_default_context(cafile=str(account / "ca.crt")),
            allow_redirects=False,
        ) as answer,
    ):
        if answer.status in {401, 403}:
            raise PermissionError(
                message(
                    "the pod's service account may not list pods in {namespace} (HTTP {status}): give it "
                    "a Role with the verb list on pods",
                    namespace=namespace,
                    status=answer.status,
                )
            )
        if answer.status != 200:  # noqa: PLR2004 - OK
            raise OSError(message("the Kubernetes API answered with HTTP {status}", status=answer.status))
        octets = bytearray()
        async for piece in answer.content.iter_any():
            octets += piece
            if len(octets) > _LIST_OCTETS:
                raise ValueError(message("the Kubernetes API's list of pods has no end"))
    return ready_pods(orjson.loads(octets), int(port))


def ready_pods(listed: Any, port: int) -> Servers:
    """The pods of a PodList that take requests: those that are not ready, or end, are left out.

    Raises:
        ValueError: it is no list of pods.
    """
    pods = listed.get("items") if isinstance(listed, dict) else None
    if not isinstance(pods, list):
        raise ValueError(message("the Kubernetes API did not answer with a list of pods"))  # noqa: TRY004 - not our caller's type
    found = [
        Server(str(pod["status"]["podIP"]), port, str(pod["metadata"]["name"]))
        for pod in pods
        if isinstance(pod, dict) and _is_ready(pod)
    ]
    return tuple(sorted(found))


def _is_ready(pod: Mapping[str, Any]) -> bool:
    metadata, status = pod.get("metadata"), pod.get("status")
    if not isinstance(metadata, dict) or not isinstance(status, dict):
        return False
    if not metadata.get("name") or metadata.get("deletionTimestamp") or not status.get("podIP"):
        return False
    conditions = status.get("conditions")
    return isinstance(conditions, list) and any(
        isinstance(one, dict) and (one.get("type"), one.get("status")) == ("Ready", "True")
        for one in conditions
    )


class NodeDiscovery:
    """Keeps the servers of rows up. Those found last stay while nobody answers. Lives on one event loop."""

    def __init__(
        self,
        resolve: Callable[[str], Awaitable[Servers]] = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask nothing yet.

        Args:
            resolve: as the function of this name.
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
            seconds: between two looks.
        """
        names = [row.url for row in rows if row.url.startswith(DISCOVERED)]
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
        if not row.url.startswith(DISCOVERED):
            found.append(row)
            continue
        for server in servers.get(row.url, ()):
            url = f"http://{_in_url(server.host)}:{server.port}"
            label = server.label or _label(server.host)
            labels = label, f"{label}-{server.port}", f"{server.host}-{server.port}"
            usable = (_node_name(row.name, one) for one in labels)
            name = next((one for one in usable if one not in names), "")
            if name and url not in addresses and len(found) < MAX_NODES:
                names.add(name)
                addresses.add(url)
                found.append(replace(row, name=name, url=url))
    return tuple(found)


def _node_name(row: str, label: str) -> str:
    """Of a long label the end is kept: only there do the names of a Deployment's pods differ."""
    row = row[: max(_LONGEST_NAME // 2, _LONGEST_NAME - 1 - len(label))]
    return _NOT_IN_A_NAME.sub("-", f"{row}-{label[-(_LONGEST_NAME - 1 - len(row)) :]}")


def _label(host: str) -> str:
    """`ollama-0` for the host ollama-0.ollama.svc; an IP address is kept whole."""
    return host if _is_ip(host) else host.partition(".")[0]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
