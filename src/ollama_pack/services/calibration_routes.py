"""What sites that learn together read here and hand over: see docs/federation.md."""

from typing import Any

from ollama_pack.engines.body import object_at
from ollama_pack.webui.cache_contact import CacheContact
from ollama_pack.webui.routes import RouteSpec

CALIBRATION = "/ollama-pack/calibration"


def calibration_routes(cache: CacheContact) -> tuple[RouteSpec, ...]:
    """Routes for admins. Each answers with `fault`, which is empty if it worked.

    | route | what |
    |---|---|
    | `GET /ollama-pack/calibration` | how often similar answers were judged right and wrong: plain counts |
    | `POST /ollama-pack/calibration` | counts the evidence that other sites gave in a round |
    | `DELETE /ollama-pack/calibration` | forgets all that other sites gave |
    """

    async def read(_request: Any, _user: Any) -> dict[str, Any]:
        return await cache.calibration()

    async def take(request: Any, _user: Any) -> dict[str, Any]:
        try:
            given = object_at(await request.json())
        except ValueError:
            return {"fault": "the body is no JSON object"}
        return {"fault": await cache.take_round(given)}

    async def forget(_request: Any, _user: Any) -> dict[str, Any]:
        return {"fault": await cache.forget_rounds()}

    return (
        RouteSpec("GET", CALIBRATION, "admin", read),
        RouteSpec("POST", CALIBRATION, "admin", take),
        RouteSpec("DELETE", CALIBRATION, "admin", forget),
    )
