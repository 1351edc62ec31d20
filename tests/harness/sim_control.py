"""The control of simulated nodes over HTTP: faults, statistics, switching off and on. No part of Ollama.

On a node's own port: ``/sim/stats`` and ``/sim/faults``. On the port of the process, which also serves when a
node does not: the same under ``/sim/NAME/``, and ``/sim/NAME/kill``, ``/sim/NAME/start`` and ``/sim/nodes``.

| request | does |
|---|---|
| ``GET stats?last=N`` | totals, models in memory, what works and waits, the last N records (0 by default) |
| ``DELETE stats`` | forgets the records |
| ``GET faults`` | what is in force |
| ``POST faults`` | one fault or a list, with the fields of ``Fault`` |
| ``DELETE faults`` | ends them |
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Protocol

from aiohttp import web

from harness.ollama_state import NodeState
from harness.ollama_wire import JSON
from harness.sim_faults import Fault, FaultBook, fault_of

__all__ = ["Controlled", "node_routes", "process_routes"]


class Controlled(Protocol):
    """A node that can be commanded."""

    state: NodeState
    faults: FaultBook

    @property
    def url(self) -> str: ...
    async def start(self) -> None: ...
    async def kill(self) -> None: ...
    async def command(self, *faults: Fault) -> None: ...
    async def clear_faults(self) -> None: ...


_Find = Callable[[web.Request], Controlled]


def node_routes(node: Controlled) -> list[web.RouteDef]:
    """Return the routes of the control on a node's own port."""
    return _Control(lambda _: node).routes("/sim")


def process_routes(nodes: Mapping[str, Controlled]) -> list[web.RouteDef]:
    """Return the routes of the control of several nodes by name."""

    def find(request: web.Request) -> Controlled:
        name = request.match_info["name"]
        if name not in nodes:
            raise web.HTTPNotFound(text=f"no node {name!r}: there are {', '.join(nodes)}\n")
        return nodes[name]

    async def names(_request: web.Request) -> web.Response:
        return web.json_response({name: node.url for name, node in nodes.items()})

    async def kill(request: web.Request) -> web.Response:
        await find(request).kill()
        return web.json_response({})

    async def start(request: web.Request) -> web.Response:
        await find(request).start()
        return web.json_response({})

    switches = [web.post("/sim/{name}/kill", kill), web.post("/sim/{name}/start", start)]
    return [web.get("/sim/nodes", names), *switches, *_Control(find).routes("/sim/{name}")]


def stats_of(state: NodeState, last: int = 0) -> JSON:
    """Return what ``GET stats`` answers."""
    scheduler = state.scheduler
    return {
        "totals": state.stats.totals(),
        "loaded": [runner.model.short_name for runner in scheduler.loaded.values()],
        "working": scheduler.working,
        "waiting_to_load": scheduler.waiting,
        "requests": state.stats.last(last),
    }


class _Control:
    """The handlers for one node, which ``find`` finds."""

    def __init__(self, find: _Find) -> None:
        self._find = find

    def routes(self, prefix: str) -> list[web.RouteDef]:
        return [
            web.get(f"{prefix}/stats", self._stats),
            web.delete(f"{prefix}/stats", self._forget),
            web.get(f"{prefix}/faults", self._faults),
            web.post(f"{prefix}/faults", self._command),
            web.delete(f"{prefix}/faults", self._clear),
        ]

    async def _stats(self, request: web.Request) -> web.Response:
        last = request.query.get("last", "0")
        if not last.isdecimal():
            raise web.HTTPBadRequest(text=f"last must be a number of records, not {last!r}\n")
        return web.json_response(stats_of(self._find(request).state, int(last)))

    async def _forget(self, request: web.Request) -> web.Response:
        self._find(request).state.stats.clear()
        return web.json_response({})

    async def _faults(self, request: web.Request) -> web.Response:
        return _listed(self._find(request).faults.active)

    async def _command(self, request: web.Request) -> web.Response:
        node = self._find(request)
        try:
            given = json.loads(await request.read())
            faults = [fault_of(one) for one in (given if isinstance(given, list) else [given])]
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        await node.command(*faults)
        return _listed(node.faults.active)

    async def _clear(self, request: web.Request) -> web.Response:
        node = self._find(request)
        await node.clear_faults()
        return _listed(node.faults.active)


def _listed(faults: Iterable[Fault]) -> web.Response:
    return web.json_response([asdict(fault) for fault in faults])
