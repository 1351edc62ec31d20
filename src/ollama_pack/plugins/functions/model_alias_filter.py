"""
title: Model aliases
author: Open WebUI Ollama Pack
author_url: {repository}
description: Answers names such as gpt-4 with the local models that a table of aliases names for them.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import Field, field_validator

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.aliases.resolve import Resolution
from ollama_pack.aliases.table import parse_table
from ollama_pack.base.messages import in_language
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.errors import PackError
from ollama_pack.services.answers import alias_refusal
from ollama_pack.services.gateway_names import choose_model
from ollama_pack.services.valves import PackValves, tell_refused
from ollama_pack.webui.early_errors import note_refusal, show_early_errors
from ollama_pack.webui.models import (
    add_system_prompt,
    remove_builtin_tools,
    system_prompt,
    takes_builtin_tools,
)
from ollama_pack.webui.users import reader_language

log = logging.getLogger(__name__)

STATE = "ollama_pack_alias"  # our key in `__metadata__`, which lives as long as the request

Body = dict[str, Any]
Emitter = Callable[[dict[str, Any]], Awaitable[None]]


class Filter:
    """Rewrites `model` to what the alias table says, before the request reaches a model."""

    class Valves(PackValves):
        priority: int = Field(
            default=0,
            title="Priority",
            description="Filters run in order of this number, lowest first. Default: 0.",
        )
        aliases: str = Field(
            default="",
            title="Aliases",
            description=(
                "One alias per line: `alias = model, model [condition, …]`. The first model that is "
                "installed and that the user may use answers. `*` in an alias stands for any text. "
                "Conditions: `vision`, `tools`, `context>=8k`, `group=staff|teachers`, `quant=q8_0>q4_K_M`, "
                "`quant=auto`. `#` starts a comment. Default: empty."
            ),
        )
        show_status: bool = Field(
            default=True,
            title="Show status line",
            description="Show above each answer which model gave it. Default: on.",
        )

        @field_validator("aliases")
        @classmethod
        def _readable(cls, text: str) -> str:
            parse_table(text)  # an AliasTableError reaches the admin as the valve's error, row and reason
            return text

    def __init__(self) -> None:
        self.valves = self.Valves()
        show_early_errors()

    async def inlet(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __model__: dict[str, Any],
        __request__: Any,
    ) -> Body:
        """Choose the model for an alias. Anything unexpected is logged, and the chat goes on unchanged."""
        alias = body.get("model")
        if not isinstance(alias, str) or __metadata__.get("direct") or _leads_to_router(alias, __model__):
            return body
        try:
            chosen = await choose_model(parse_table(self.valves.aliases), body, alias, __user__, __request__)
        except AliasUnavailableError as error:
            raise _said(error, __user__, __metadata__, __request__) from error
        except Exception:
            log.exception("The alias %r was not resolved, and the chat went on without it", alias)
            return body
        if chosen is not None:
            body["model"] = _model_id(*chosen, __model__)
            __metadata__[STATE] = {"alias": alias, "model": body["model"]}
        return body

    async def request(
        self,
        body: Body,
        __user__: dict[str, Any],
        __metadata__: dict[str, Any],
        __model__: dict[str, Any],
        __request__: Any,
        __event_emitter__: Emitter | None = None,
    ) -> Body:
        """Choose again, once, when files, memory and tools have made the prompt what the model will see."""
        state = __metadata__.get(STATE)
        if not state or state.get("settled") or body.get("model") != state["model"]:
            return body  # no alias, a later round of a tool loop, or another plugin's choice
        state["settled"] = True
        alias = state["alias"]
        try:
            chosen = await choose_model(parse_table(self.valves.aliases), body, alias, __user__, __request__)
            if chosen is not None:
                resolution, model_id = chosen
                body["model"] = _model_id(resolution, model_id, __model__)
                if not takes_builtin_tools(model_id, __request__):
                    remove_builtin_tools(body, __metadata__)
                if body["model"] != alias and (prompt := await system_prompt(alias)):
                    await add_system_prompt(body, prompt, __metadata__, __user__)
                if self.valves.show_status and __event_emitter__:
                    language = reader_language(__metadata__, __request__)
                    await tell_refused(__event_emitter__, __user__, language)
                    # The page shows the last line, and those before it on a click.
                    for line in filter(None, (resolution.why, resolution.status)):
                        await __event_emitter__(_status(in_language(line, language)))
        except AliasUnavailableError as error:
            raise _said(error, __user__, __metadata__, __request__) from error
        except Exception:
            log.exception("The alias %r was not settled, and %r answers", alias, body.get("model"))
        return body


def _said(error: AliasUnavailableError, user: Body, metadata: Body, request: Any) -> Exception:
    """What is raised where the user has asked for a name to which nothing answers: it says why."""
    language = reader_language(metadata, request)
    refusal = alias_refusal(error, for_admin=user.get("role") == "admin").translated(language)
    note_refusal(request, refusal, metadata)
    return PackError(refusal.message)


def _leads_to_router(alias: str, model: dict[str, Any]) -> bool:
    """Whether `gpu_router` answers to this name: it has a table of its own, and knows which nodes answer."""
    based_on = (model.get("info") or {}).get("base_model_id") or ""
    return alias.startswith(ROUTER) or based_on.startswith(ROUTER)


def _model_id(chosen: Resolution, model_id: str, alias_row: dict[str, Any]) -> str:
    """The alias itself where its row in Open WebUI stands for the model already: its settings apply."""
    info = alias_row.get("info") or {}
    if alias_row.get("id") == chosen.alias and info.get("base_model_id") == model_id:
        return chosen.alias
    return model_id


def _status(line: str) -> dict[str, Any]:
    return {"type": "status", "data": {"description": line, "done": True}}
