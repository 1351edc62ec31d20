"""What admins do to nodes while chats go on: drain one, or pull a model at one after another."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ollama_pack.base.messages import message, said_by
from ollama_pack.engines.body import object_at
from ollama_pack.services.dashboard import translated
from ollama_pack.webui.contact import ROUTER_ID, RouterContact
from ollama_pack.webui.dashboard import page_language
from ollama_pack.webui.errors import RouterUnavailableError
from ollama_pack.webui.functions import function_state, set_valve
from ollama_pack.webui.routes import RouteSpec

MAX_NAME = 256
MAX_NAMED = 1024

Act = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


def upkeep_routes(router: RouterContact) -> tuple[RouteSpec, ...]:
    """Routes for the dashboard. Each answers with what upkeep does, and a `fault` that is empty if it worked.

    | route | body |
    |---|---|
    | `POST /ollama-pack/nodes/drain` | `{"node": "gpu1", "drain": true}` |
    | `POST /ollama-pack/nodes/pull` | `{"model": "llama3:8b", "nodes": ["gpu0"]}`; no nodes: all Ollamas |
    | `POST /ollama-pack/nodes/pull/stop` | `{}` |
    """

    async def drain(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return await _drain(router, str(asked.get("node") or ""), drains=asked.get("drain") is not False)

    async def pull(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        model, nodes = asked.get("model"), asked.get("nodes") or []
        if not isinstance(model, str) or not 0 < len(model.strip()) <= MAX_NAME:
            return {"fault": message("The model is missing. Write the name that `ollama pull` takes.")}
        if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
            return {"fault": message("`nodes` must be a list of names. Leave it out for all Ollamas.")}
        return await router.pull(model.strip(), nodes[:MAX_NAMED])

    async def stop(_asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return await router.stop_pull()

    return (
        RouteSpec("POST", "/ollama-pack/nodes/drain", "admin", _answering(drain)),
        RouteSpec("POST", "/ollama-pack/nodes/pull", "admin", _answering(pull)),
        RouteSpec("POST", "/ollama-pack/nodes/pull/stop", "admin", _answering(stop)),
    )


def _answering(act: Act) -> Callable[[Any, Any], Awaitable[Any]]:
    """A route that does something, and answers in the language of who asks."""

    async def answer(request: Any, _user: Any) -> Any:
        try:
            done = await act(await _object_of(request))
        except RouterUnavailableError as error:
            done = {"fault": said_by(error)}
        return translated(done, page_language(request))

    return answer


async def _drain(router: RouterContact, node: str, *, drains: bool) -> dict[str, Any]:
    """Write it into the router's valve: then every worker and replica knows, also after a restart."""
    known = [str(one.get("name")) for one in (await router.dashboard()).get("nodes") or ()]
    if node not in known:
        names = ", ".join(known) or "-"
        return {"fault": message("There is no node {node}. The nodes are: {nodes}.", node=node, nodes=names)}
    state = await function_state(ROUTER_ID)
    drained = set(str(state.valves.get("drained") or "").replace(",", " ").split())
    drained = (drained | {node} if drains else drained - {node}) & set(known)
    await set_valve(ROUTER_ID, "drained", " ".join(sorted(drained)))
    return {"fault": "", **object_at((await router.dashboard()).get("upkeep"))}


async def _object_of(request: Any) -> Mapping[str, Any]:
    """The body; what is no JSON object counts as an empty one."""
    try:
        return object_at(await request.json())
    except ValueError:
        return {}
