"""What Open WebUI knows of models and of who may use them. Imports `open_webui` when called, not before."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ollama_pack.engines.body import object_at
from ollama_pack.engines.model_ids import ROUTER


class ModelCatalogue(Mapping[str, str]):
    """Name → quantization level (empty where unknown) of every model that Open WebUI offers.

    A name is the model's id; what `gpu_router` offers has the name that the nodes give it, too.

    A view, not a copy: with several replicas `app.state.MODELS` lives in Redis and every look costs a
    round trip, so only what is asked for is looked up.
    """

    def __init__(self, models: Any) -> None:
        self._models = models
        self._ids: tuple[str, ...] | None = None

    def __contains__(self, model: object) -> bool:
        return model in self._models or f"{ROUTER}{model}" in self._models

    def __getitem__(self, model: str) -> str:
        offered = self._models[model] if model in self._models else self._models[ROUTER + model]
        details = (offered.get("ollama") or {}).get("details") or {}
        return str(details.get("quantization_level") or "")

    def __iter__(self) -> Iterator[str]:
        if self._ids is None:  # kept: the view lives no longer than the request
            ids = tuple(self._models.keys())
            routed = (model.removeprefix(ROUTER) for model in ids if model.startswith(ROUTER))
            self._ids = tuple(dict.fromkeys((*ids, *routed)))
        return iter(self._ids)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def ids_of(self, model: str) -> list[str]:
        """The ids that a model may be asked for by: over all nodes first, then over one connection."""
        return [found for found in (ROUTER + model, model) if found in self._models]


def catalogue(request: Any) -> ModelCatalogue:
    """The models of the running Open WebUI, as of its last look at its connections."""
    return ModelCatalogue(request.app.state.MODELS)


def takes_builtin_tools(model_id: str, request: Any) -> bool:
    """Whether Open WebUI may offer its own tools to a model: so it is unless its row says no."""
    info = request.app.state.MODELS[model_id].get("info") or {}
    capabilities = (info.get("meta") or {}).get("capabilities") or {}
    return bool(capabilities.get("builtin_tools", True))


def remove_builtin_tools(body: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Take Open WebUI's own tools out of a request, and leave those that the user or the client chose.

    What is no list of tools is left for whoever reads them to refuse.
    """
    known = metadata.get("tools") or {}
    offered = body.get("tools") or []
    if not (isinstance(offered, list) and all(isinstance(tool, Mapping) for tool in offered)):
        return
    body.pop("tools", None)
    chosen = [tool for tool in offered if known.get(_tool_name(tool), {}).get("type") != "builtin"]
    if chosen:
        body["tools"] = chosen


def _tool_name(tool: Mapping[str, Any]) -> str:
    return str(object_at(tool, "function").get("name"))


def reads_all(user: Mapping[str, Any]) -> bool:
    """Whether Open WebUI checks no grants for this user, as its switches BYPASS_… say."""
    from open_webui.env import BYPASS_MODEL_ACCESS_CONTROL  # noqa: PLC0415 - see the top of this module

    if BYPASS_MODEL_ACCESS_CONTROL:
        return True
    config = sys.modules.get(
        "open_webui.config"
    )  # as the server has it: importing it would open its database
    return user.get("role") == "admin" and bool(getattr(config, "BYPASS_ADMIN_ACCESS_CONTROL", True))


async def may_use(user: Mapping[str, Any], model_id: str, request: Any) -> bool:
    """Whether Open WebUI will let this user chat with a model that exists: its own rule, asked in advance."""
    if reads_all(user):
        return True

    from open_webui.models.users import UserModel  # noqa: PLC0415 - see the top of this module
    from open_webui.utils.models import check_model_access  # noqa: PLC0415

    try:
        await check_model_access(UserModel.model_validate(user), request.app.state.MODELS[model_id])
    except Exception as error:  # a refusal there is a bare Exception with this one text
        if str(error) == "Model not found":
            return False
        raise
    return True


async def offered_models(request: Any, user: Any) -> Any:
    """What Open WebUI offers, by id, as of its last look at its connections. It looks where it has not."""
    if not request.app.state.MODELS:
        from open_webui.utils.models import get_all_models  # noqa: PLC0415 - see the top of this module

        await get_all_models(request, user=user)
    return request.app.state.MODELS


async def visible_models(request: Any, user: Any) -> list[dict[str, Any]]:
    """The models that a user may ask for and the picker shows, as Open WebUI lists them."""
    from open_webui.utils.models import get_filtered_models  # noqa: PLC0415

    offered = list((await offered_models(request, user)).values())
    visible: list[dict[str, Any]] = await get_filtered_models(offered, user)
    return [model for model in visible if not _is_hidden(model)]


def _is_hidden(model: Mapping[str, Any]) -> bool:
    return bool(((model.get("info") or {}).get("meta") or {}).get("hidden"))


async def model_row(model_id: str) -> dict[str, Any] | None:
    """What an admin or the pack has said about a model of this id; None: nothing."""
    from open_webui.models.models import Models  # noqa: PLC0415

    row = await Models.get_model_by_id(model_id)
    return None if row is None else dict(row.model_dump(exclude_none=True))


async def system_prompt(model_id: str) -> str:
    """The system prompt that an admin wrote into a model's row; empty when there is none."""
    from open_webui.models.models import Models  # noqa: PLC0415

    row = await Models.get_model_by_id(model_id)
    return str((row.params.model_dump() if row else {}).get("system") or "")


async def add_system_prompt(
    body: dict[str, Any], prompt: str, metadata: dict[str, Any], user: Mapping[str, Any]
) -> None:
    """Put a row's system prompt before the conversation, its variables filled in, as Open WebUI does."""
    from open_webui.models.users import UserModel  # noqa: PLC0415
    from open_webui.utils.payload import apply_system_prompt_to_body  # noqa: PLC0415

    await apply_system_prompt_to_body(prompt, body, metadata, UserModel.model_validate(user))
