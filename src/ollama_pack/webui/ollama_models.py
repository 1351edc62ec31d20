"""Open WebUI's Ollama API, and which of its names the router answers. Imports `open_webui` when called."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.webui.models import visible_models

MOST_HOPS = 10
_YEAR_9999 = 253_370_764_800
UNKNOWN = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


def created_at(model: Mapping[str, Any]) -> int:
    """When a listed model was made, in seconds of the epoch; 0 where that is not told in seconds."""
    told = model.get("created")
    return int(told) if isinstance(told, int | float) and 0 < told < _YEAR_9999 else 0


async def routed_body(form: Mapping[str, Any]) -> dict[str, Any] | None:
    """A chat with the settings of its row, as Open WebUI's own chat has it; None: it is not the router's."""
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    name = form.get("model")
    if not isinstance(name, str):
        return None
    row = first = await Models.get_model_by_id(name)
    step, hops = name, 0
    while row is not None and row.base_model_id and hops < MOST_HOPS:
        step, hops = row.base_model_id, hops + 1
        row = await Models.get_model_by_id(step)
    if not step.startswith(ROUTER):
        return None
    params = first.params.model_dump(exclude_none=True) if first else {}
    without = {"system", "model_controls"}  # the system prompt is added on the way
    said = {key: value for key, value in params.items() if key not in without}
    own = {
        key: value for key, value in form.items() if key != "metadata"
    }  # what is in it is the server's word
    # As the gateway does: of parameters in the body nobody could tell that an admin has set them.
    return {**own, "params": {}, "metadata": {"model": {"info": {"params": said}}}} if said else own


async def routed_entries(request: Any, user: Any) -> list[dict[str, Any]]:
    """The router's names that a user may ask for and the picker shows, as `/api/tags` lists models."""
    own = own_ollama_models(request)
    shown = await visible_models(request, user)
    return [tags_entry(str(model["id"]), model, own) for model in shown if _is_routed(model)]


def _is_routed(model: Mapping[str, Any]) -> bool:
    info = model.get("info") or {}
    return str(model["id"]).startswith(ROUTER) or str(info.get("base_model_id") or "").startswith(ROUTER)


def own_ollama_models(request: Any) -> Mapping[str, Mapping[str, Any]]:
    """The models of Open WebUI's own Ollama connections, as these list them."""
    return getattr(request.app.state, "OLLAMA_MODELS", None) or {}


def tags_entry(name: str, model: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An entry of `/api/tags`. Of what an Ollama connection offers, too, the figures are known.

    Args:
        name: what clients ask for.
        model: as Open WebUI lists it.
        own: those of its Ollama connections.
    """
    base = str((model.get("info") or {}).get("base_model_id") or name)
    known = own.get(base.removeprefix(ROUTER)) or {}
    created = datetime.fromtimestamp(created_at(model), UTC).isoformat()
    return {
        "name": name,
        "model": name,
        "modified_at": known.get("modified_at") or created,
        "size": known.get("size") or 0,
        "digest": known.get("digest") or "",
        "details": known.get("details") or UNKNOWN,
    }


async def tags_of_open_webui(request: Any, user: Any) -> dict[str, Any]:
    """Open WebUI's own list of the models of its Ollama connections."""
    from open_webui.routers import ollama  # noqa: PLC0415

    found: dict[str, Any] = await ollama.get_ollama_tags(request, url_idx=None, user=user)
    return found


async def answer_of_open_webui(endpoint: str, request: Any, form: dict[str, Any], user: Any) -> Any:
    """What Open WebUI's own route of its Ollama API answers."""
    from open_webui.routers import ollama  # noqa: PLC0415

    return await getattr(ollama, endpoint)(request, form, url_idx=None, user=user)
