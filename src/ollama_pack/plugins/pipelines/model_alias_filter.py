"""
title: Model aliases
author: Open WebUI Ollama Pack
description: Answers names such as gpt-4 with the local models that a table of aliases names for them.
license: MIT
version: {version}
"""

import logging
import os
from typing import Any

from pydantic import BaseModel, Field, field_validator

from ollama_pack.aliases.facts import request_facts
from ollama_pack.aliases.resolve import resolve
from ollama_pack.aliases.table import parse_table
from ollama_pack.errors import AliasUnavailableError
from ollama_pack.ollama.tags import InstalledModels

log = logging.getLogger(__name__)


class Pipeline:
    """Rewrites `model` to what the alias table says, before Open WebUI looks at the request further.

    The Pipelines server knows neither the user's groups nor what Open WebUI grants: rows that ask for a group
    are refused, and a model that the user may not use is refused by Open WebUI afterwards.
    """

    class Valves(BaseModel):
        pipelines: list[str] = Field(default=["*"], description="Models that the filter is for; * for all.")
        priority: int = Field(default=0, description="Filters run from the lowest number to the highest.")
        aliases: str = Field(
            default="",
            description=(
                "A row a line: alias = model, model [condition, …]. The first model that is installed answers. "
                "A * in an alias stands for any text. Conditions: vision, tools, context>=8k, "
                "quant=q8_0>q4_K_M. A # starts a comment."
            ),
        )
        ollama_urls: str = Field(
            default="",
            description=(
                "Ollama servers, separated by commas, that are asked which models are installed; "
                "when empty, the first model of a row is taken."
            ),
        )
        uploaded_digest: str = Field(
            default="", description="Left by upload.py, to know which code it sent. Leave it as it is."
        )

        @field_validator("aliases")
        @classmethod
        def _readable(cls, text: str) -> str:
            if parse_table(text).uses_groups:
                message = "group= is not known on the Pipelines server: use the model_alias_filter function for it"
                raise ValueError(message)
            return text

    def __init__(self) -> None:
        self.type = "filter"
        self.name = "Model aliases"
        self.valves = self.Valves(
            aliases=os.getenv("MODEL_ALIASES", ""), ollama_urls=os.getenv("OLLAMA_BASE_URLS", "")
        )
        self._installed = InstalledModels(())

    async def on_startup(self) -> None:
        self._look_at_nodes()

    async def on_shutdown(self) -> None:
        """Nothing is held between requests."""

    async def on_valves_updated(self) -> None:
        self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        urls = [url.strip() for url in self.valves.ollama_urls.replace(";", ",").split(",")]
        self._installed = InstalledModels([url for url in urls if url])

    async def inlet(self, body: dict[str, Any], user: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ARG002 - the server passes it
        """Choose the model for an alias. Anything unexpected is logged, and the chat goes on unchanged."""
        alias = body.get("model")
        if not isinstance(alias, str):
            return body
        try:
            table = parse_table(self.valves.aliases)
            chosen = resolve(table, request_facts(body, alias), await self._installed.get())
        except AliasUnavailableError:
            raise  # the user asked for this name: say why nothing answers to it
        except Exception:
            log.exception("The alias %r was not resolved, and the chat went on without it", alias)
            return body
        if chosen is not None and not _already_stands_for(body, chosen.model):
            body["model"] = chosen.model
        return body


def _already_stands_for(body: dict[str, Any], model: str) -> bool:
    """Whether the alias's row in Open WebUI stands for the model: then the row's own settings apply."""
    try:
        return bool(body["metadata"]["model"]["info"]["base_model_id"] == model)
    except (KeyError, TypeError):
        return False
