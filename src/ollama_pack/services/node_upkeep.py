"""What admins do to nodes while chats go on: drain one, or pull a model at one after another."""

from collections.abc import Mapping
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at
from ollama_pack.webui.contact import ROUTER_ID, RouterContact
from ollama_pack.webui.errors import RouterUnavailableError
from ollama_pack.webui.functions import function_state, set_valve
from ollama_pack.webui.routes import RouteSpec

MAX_NAME = 256
MAX_NAMED = 1024


def upkeep_routes(router: RouterContact) -> tuple[RouteSpec, ...]:
    """Routes for the dashboard. Each answers with what upkeep does, and a `fault` that is empty if it worked.

    | route | body |
    |---|---|
    | `POST /ollama-pack/nodes/drain` | `{"node": "gpu1", "drain": true}` |
    | `POST /ollama-pack/nodes/pull` | `{"model": "llama3:8b", "nodes": ["gpu0"]}`; no nodes: all Ollamas |
    """

    async def drain(request: Any, _user: Any) -> dict[str, Any]:
        asked = await _object_of(request)
        return await _drain(router, str(asked.get("node") or ""), drains=asked.get("drain") is not False)

    async def pull(request: Any, _user: Any) -> dict[str, Any]:
        asked = await _object_of(request)
        model, nodes = asked.get("model"), asked.get("nodes") or []
        if not isinstance(model, str) or not 0 < len(model) <= MAX_NAME:
            return {"fault": message("`model` is missing: write the name that `ollama pull` takes")}
        if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes[:MAX_NAMED]):
            return {"fault": message("`nodes` must be a list of names; leave it out for all Ollamas")}
        try:
            return dict(await router.pull(model, nodes[:MAX_NAMED]))
        except RouterUnavailableError as error:
            return {"fault": str(error)}

    return (
        RouteSpec("POST", "/ollama-pack/nodes/drain", "admin", drain),
        RouteSpec("POST", "/ollama-pack/nodes/pull", "admin", pull),
    )


async def _drain(router: RouterContact, node: str, *, drains: bool) -> dict[str, Any]:
    """Write it into the router's valve: then every worker and replica knows, also after a restart."""
    try:
        known = [str(one.get("name")) for one in (await router.dashboard()).get("nodes") or ()]
        if node not in known:
            return {
                "fault": message(
                    "there is no node {node!r}: the nodes are {known}",
                    node=node,
                    known=", ".join(known) or message("none"),
                )
            }
        state = await function_state(ROUTER_ID)
        drained = set(str(state.valves.get("drained") or "").replace(",", " ").split())
        drained = (drained | {node} if drains else drained - {node}) & set(known)
        await set_valve(ROUTER_ID, "drained", " ".join(sorted(drained)))
        return {"fault": "", **object_at((await router.dashboard()).get("upkeep"))}
    except RouterUnavailableError as error:
        return {"fault": str(error)}


async def _object_of(request: Any) -> Mapping[str, Any]:
    """The body; what is no JSON object counts as an empty one."""
    try:
        return object_at(await request.json())
    except ValueError:
        return {}
