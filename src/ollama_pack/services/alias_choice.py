"""The model that answers for an alias: the first that is there and that Open WebUI lets this user use."""

from collections.abc import Mapping
from typing import Any

from ollama_pack.aliases.facts import request_facts
from ollama_pack.aliases.resolve import Resolution, resolve
from ollama_pack.aliases.table import AliasTable
from ollama_pack.webui.models import catalogue, group_names, may_use


async def choose_model(
    table: AliasTable, body: Mapping[str, Any], alias: str, user: Mapping[str, Any], request: Any
) -> tuple[Resolution, str] | None:
    """Resolve, and ask again without each model that Open WebUI would refuse to this user.

    Returns:
        The resolution and the id of its model: where `gpu_router` offers it, too, it answers over all nodes.
    """
    if next(table.matching(alias), None) is None:
        return None  # most requests: no alias, so nothing to find out
    facts = request_facts(body, alias, await group_names(user) if table.uses_groups else ())
    models = catalogue(request)
    denied: set[str] = set()
    while chosen := resolve(table, facts, models, denied):
        for model_id in models.ids_of(chosen.model):
            if await may_use(user, model_id, request):
                return chosen, model_id
        denied.add(chosen.model)
    return None
