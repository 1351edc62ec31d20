"""Open WebUI's connections as the router's nodes, and the ids that its models have in Open WebUI."""

from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from ollama_pack.routing.nodes import Listing, NodeRow
from ollama_pack.routing.probe.catalogue import FleetModel
from ollama_pack.webui.access import CheckedModel
from ollama_pack.webui.connections import ConnectionModels

_PORTS = {"http": 80, "https": 443}


def same_server(url: str) -> str:
    """What two addresses of one server have in common: an OpenAI address ends in /v1, a node's does not."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or _PORTS.get(parts.scheme.lower())
    except ValueError:
        return url
    return f"{(parts.hostname or '').lower()}:{port}{parts.path.rstrip('/').removesuffix('/v1')}"


def connected_nodes(
    connections: Iterable[tuple[str, str]], lists: Sequence[ConnectionModels]
) -> tuple[NodeRow, ...]:
    """A node for each server; what several connections to it offer, it offers.

    Args:
        connections: address and key of each Ollama connection that is on.
        lists: what the connections offer.
    """
    servers = {same_server(url): (url, key) for url, key in reversed(list(connections))}
    return tuple(
        NodeRow(f"ollama{number}", url.rstrip("/"), key=key, listings=_listings(server, lists))
        for number, (server, (url, key)) in enumerate(reversed(servers.items()))
    )


def _listings(server: str, lists: Iterable[ConnectionModels]) -> tuple[Listing, ...]:
    there = [found for found in lists if found.is_on and same_server(found.url) == server]
    listings = tuple(dict.fromkeys(Listing(found.prefix, found.only) for found in there))
    return () if Listing() in listings and len(listings) == 1 else listings


class OfferedIds:
    """The ids and tags that Open WebUI's connections give to the models of nodes."""

    def __init__(
        self, rows: Iterable[NodeRow], lists: Sequence[ConnectionModels], *, are_connections: bool
    ) -> None:
        """Compare the addresses.

        Args:
            rows: the nodes.
            lists: what the connections offer.
            are_connections: the nodes are the connections, so that their models have Open WebUI's own ids.
        """
        self._are_connections = are_connections
        self._lists = {
            row.name: [found for found in lists if same_server(found.url) == same_server(row.url)]
            for row in rows
        }

    def named(self, name: str, model: FleetModel | None) -> CheckedModel:
        """A model with its ids. Where a node is no connection, its name is its id."""
        if model is None or self._are_connections:
            return CheckedModel(model.name if model else name, (model.name if model else name,))
        ids = dict.fromkeys(
            offered
            for node in model.nodes
            for offered in (
                [found.id_of(model.name) for found in self._lists[node]]
                if self._lists[node]
                else [model.name]
            )
        )
        return CheckedModel(model.name, tuple(offered for offered in ids if offered))

    def tags(self, model: FleetModel) -> list[str]:
        """The tags that the connections give to a model."""
        found = (
            tag
            for node in model.nodes
            for listed in self._lists[node]
            if listed.is_on and (not self._are_connections or _has(listed, model.name))
            for tag in listed.tags
        )
        return list(dict.fromkeys(found))


def _has(listed: ConnectionModels, offered: str) -> bool:
    """Whether a connection offers a model under this id."""
    own = offered.removeprefix(f"{listed.prefix}.") if listed.prefix else offered
    return listed.id_of(own) == offered
