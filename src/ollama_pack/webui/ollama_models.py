"""Open WebUI's Ollama API, and which of its names the router answers. Imports `open_webui` when called."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ollama_pack.engines.routed_names import ROUTER

MOST_HOPS = 10
UNKNOWN = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


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
    return {**form, "params": said} if said else dict(form)


async def routed_entries(request: Any, user: Any) -> list[dict[str, Any]]:
    """The router's names that a user may ask for and the picker shows, as `/api/tags` lists models."""
    from open_webui.utils.models import get_all_models, get_filtered_models  # noqa: PLC0415

    models = request.app.state.MODELS
    if not models:
        await get_all_models(request, user=user)
        models = request.app.state.MODELS
    routed = [model for model in list(models.values()) if _is_shown(model)]
    own = getattr(request.app.state, "OLLAMA_MODELS", None) or {}
    return [_entry(model, own) for model in await get_filtered_models(routed, user)]


def _is_shown(model: Mapping[str, Any]) -> bool:
    info = model.get("info") or {}
    if (info.get("meta") or {}).get("hidden"):
        return False
    return str(model["id"]).startswith(ROUTER) or str(info.get("base_model_id") or "").startswith(ROUTER)


def _entry(model: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An entry of the list. Of what an Ollama connection offers, too, the figures are known."""
    name = str(model["id"])
    known = own.get(name.removeprefix(ROUTER)) or {}
    created = datetime.fromtimestamp(int(model.get("created") or 0), UTC).isoformat()
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
