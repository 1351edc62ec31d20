"""What answers under a model's id, and what its row adds to a chat. Imports `open_webui` when called."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.webui.models import add_system_prompt

# `pipe`: a function, such as an agent; `pipeline`: on the Pipelines server; `arena`: Open WebUI draws one of
# several models for each chat. None of them can be looked into.
Origin = Literal["ollama", "router", "openai", "pipe", "pipeline", "arena", "unknown"]


@dataclass(frozen=True, slots=True)
class AnsweringModel:
    """The model behind an id.

    Attributes:
        id: under which Open WebUI offers it itself.
        origin: what it belongs to.
        preset: what its row adds to a chat after every filter, its variables filled in.
    """

    id: str
    origin: Origin
    preset: Mapping[str, Any] = field(default_factory=dict)


async def answering_model(
    model: str, metadata: Mapping[str, Any], user: Mapping[str, Any], request: Any
) -> AnsweringModel:
    """Look at a model's row, and at what is under it."""
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    row = await Models.get_model_by_id(model)
    base = str(row.base_model_id or model) if row else model
    params = row.params.model_dump(exclude_none=True) if row else {}
    system = await _filled_in(str(params.pop("system", "") or ""), metadata, user)
    preset = {"base": base, "params": params, "system": system}
    return AnsweringModel(base, _origin_of(base, request.app.state.MODELS), preset)


def _origin_of(model: str, models: Mapping[str, Mapping[str, Any]]) -> Origin:
    if model.startswith(ROUTER):
        return "router"
    if model not in models:
        return "unknown"
    about = models[model]
    if about.get("pipe") or about.get("pipeline"):
        return "pipe" if about.get("pipe") else "pipeline"
    if about.get("owned_by") == "arena":
        return "arena"
    return "ollama" if about.get("owned_by") == "ollama" else "openai"


async def _filled_in(system: str, metadata: Mapping[str, Any], user: Mapping[str, Any]) -> str:
    """A row's system prompt as the model will see it: it may hold the date, or the user's name."""
    if "{{" not in system:
        return system
    body: dict[str, Any] = {"messages": []}
    await add_system_prompt(body, system, dict(metadata), user)
    return "\n".join(str(message["content"]) for message in body["messages"])


async def default_params() -> dict[str, Any]:
    """The parameters that an admin has set for all models."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    return dict(await Config.get("models.default_params", {}) or {})
