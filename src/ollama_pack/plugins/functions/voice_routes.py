"""
title: Voice routes
author: Open WebUI Ollama Pack
author_url: {repository}
description: Answers /api/voice/… for those who use voice alone; ollama_pack_events has these routes, too.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

import logging
from collections.abc import Mapping
from typing import Any

from ollama_pack.services.voice_routes import MicrophoneValves, VoiceRoutes
from ollama_pack.webui.functions import FunctionState
from ollama_pack.webui.service import EventService, ends

log = logging.getLogger(__name__)


class Event:
    """The routes of voice transcription, kept up in every process of Open WebUI."""

    class Valves(MicrophoneValves):
        """What an admin sets."""

    def __init__(self) -> None:
        self.valves = self.Valves()
        self._service: EventService | None = None
        self._routes = VoiceRoutes(lambda: self.valves.microphone_key)

    async def event(self, event: Mapping[str, Any], __event_name__: str, __app__: Any, __id__: str) -> None:
        """Begin at whichever event comes first, end when the function is switched off."""
        try:
            if ends(event, __event_name__, __id__):
                if self._service is not None:
                    self._service.stop()
                return
            self._service = self._service or EventService(__app__, __id__, self, self._look)
            self._service.start(self._routes.specs)
        except Exception:
            log.exception("%s could not take the event %r", __id__, __event_name__)

    async def _look(self, _state: FunctionState) -> None:
        if self._service is not None:
            self._service.start(self._routes.specs)
