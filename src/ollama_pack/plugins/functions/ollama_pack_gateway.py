"""
title: Ollama Pack gateway
author: Open WebUI Ollama Pack
author_url: {repository}
description: Answers OpenAI's, Anthropic's and Ollama's APIs at /ollama-pack/v1 and /ollama-pack/api.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ollama_pack.services.gateway import Gateway
from ollama_pack.services.valves import PackValves
from ollama_pack.webui.functions import FunctionState
from ollama_pack.webui.service import EventService

log = logging.getLogger(__name__)

# Events after which somebody may use more or less than before, or a name stands for something else.
CHANGES = ("auth.", "config.", "function.", "group.", "model.", "system.startup.", "user.")
OFF = frozenset({"function.disable_started", "system.shutdown.started"})


class Event:
    """The gateway's routes, kept up in every process of Open WebUI."""

    class Valves(PackValves):
        mode: Literal["full", "direct"] = Field(
            default="full",
            title="Mode",
            description=(
                "`full`: requests go through Open WebUI's own chat path, with every filter and tool. "
                "`direct`: requests go only through access rules, aliases, cache and router, which adds "
                "milliseconds. Default: `full`."
            ),
        )

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._service: EventService | None = None

    async def event(self, event: Mapping[str, Any], __event_name__: str, __app__: Any, __id__: str) -> None:
        """Begin at the first event, and forget what a later one has changed."""
        try:
            about_us = (event.get("subject") or {}).get("id") == __id__
            if __event_name__ in OFF and (about_us or __event_name__.startswith("system.")):
                if self._service is not None:
                    self._service.stop()
                return
            if self._service is None:
                self._gateway = Gateway(__app__, lambda: self.valves.mode)
                self._service = EventService(__app__, __id__, self, self._look)
            self._service.start(self._gateway.specs)
            if __event_name__.startswith(CHANGES):
                self._gateway.forget()
        except Exception:
            log.exception("%s could not take the event %r", __id__, __event_name__)

    async def _look(self, _state: FunctionState) -> None:
        """Nothing to look after: the routes are the service's."""
