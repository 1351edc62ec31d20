"""What sites that learn together read here and hand over: see docs/federation.md."""

from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import object_at
from ollama_pack.services.dashboard import translated
from ollama_pack.webui.cache_contact import CacheContact
from ollama_pack.webui.dashboard import page_language
from ollama_pack.webui.routes import RouteSpec

CALIBRATION = "/ollama-pack/calibration"


def calibration_routes(cache: CacheContact) -> tuple[RouteSpec, ...]:
    """Routes for admins. Each answers with `fault`, in the reader's language, which is empty if it worked.

    | route | what |
    |---|---|
    | `GET /ollama-pack/calibration` | how often similar answers were judged right and wrong: plain counts |
    | `POST /ollama-pack/calibration` | counts the evidence that other sites gave in a round |
    | `DELETE /ollama-pack/calibration` | forgets all that other sites gave |
    """

    async def read(request: Any, _user: Any) -> Any:
        return translated(await cache.calibration(), page_language(request))

    async def take(request: Any, _user: Any) -> Any:
        try:
            fault = await cache.take_round(object_at(await request.json()))
        except ValueError:
            fault = message("the body is no JSON object")
        return translated({"fault": fault}, page_language(request))

    async def forget(request: Any, _user: Any) -> Any:
        return translated({"fault": await cache.forget_rounds()}, page_language(request))

    return (
        RouteSpec("GET", CALIBRATION, "admin", read),
        RouteSpec("POST", CALIBRATION, "admin", take),
        RouteSpec("DELETE", CALIBRATION, "admin", forget),
    )
