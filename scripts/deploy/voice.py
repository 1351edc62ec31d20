"""What pack.yaml says of voice, for the plugins that it is about."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deploy.client import OpenWebUI
from deploy.config import Voice
from deploy.microphone import (
    BEFORE_VALVE,
    KEY_VALVE,
    MICROPHONE_PATH,
    kept_before,
    microphone_key,
    plan_microphone,
    plan_no_microphone,
    transcription_fault,
)
from deploy.plan import Plan, Trouble
from deploy.plugin import LocalPlugin
from deploy.rows import audience_grants
from deploy.shown import SECRETS, message
from ollama_pack.webui.audience import Grants

EVENTS, VOICE = "ollama_pack_events", "voice_transcription"
ROUTES = "voice_routes"  # for who installs nothing else of the events function


@dataclass(frozen=True)
class Voicing:
    """The section `voice` for a server.

    Attributes:
        said: the section; None: pack.yaml has none.
        server: the Open WebUI.
        wanted: ids of the plugins that are installed in this run.
    """

    said: Voice | None
    server: OpenWebUI
    wanted: set[str]

    @property
    def tool_valves(self) -> dict[str, Any]:
        """Of `voice_transcription`."""
        return self.said.valves if self.said else {}

    @property
    def grants(self) -> Grants | None:
        """Who may use the tool; None: the section does not say."""
        if self.said is None or not self.said.says_audience:
            return None
        return audience_grants(self.server, {VOICE: self.said.audience})[VOICE]

    def function_valves(self, plugin: LocalPlugin) -> dict[str, Any]:
        """Of a function: the one with the routes gets the microphone's key."""
        if not self._uses_microphone or plugin.id != self._function:
            return {}
        return {KEY_VALVE: self._key, BEFORE_VALVE: kept_before(self.server, self._stored)}

    def plan_microphone(self, plan: Plan) -> None:
        """Add the step that sets Open WebUI's microphone as the section says, if it says so."""
        if self.said is None or "microphone" not in self.said.model_fields_set or not self._function:
            return
        if self.said.microphone:
            address = self.server.url if self.said.microphone is True else self.said.microphone
            plan_microphone(plan, self.server, address, self._key)
        else:
            plan_no_microphone(plan, self.server, self._stored)

    def problems(self) -> list[Trouble]:
        """Why Open WebUI's microphone does not work, tried out once it has been set up."""
        fault = transcription_fault(self.server, MICROPHONE_PATH) if self._uses_microphone else ""
        remedy = message(
            "where Open WebUI reaches itself under another address, give that as `voice.microphone`"
        )
        return [Trouble(message("microphone"), fault, remedy)] if fault else []

    @property
    def _uses_microphone(self) -> bool:
        return self.said is not None and bool(self.said.microphone) and bool(self._function)

    @property
    def _function(self) -> str:
        """The function that has the routes; empty: none is installed in this run."""
        return next((name for name in (ROUTES, EVENTS) if name in self.wanted), "")

    @cached_property
    def _stored(self) -> dict[str, Any]:
        return microphone_valves(self.server)

    @cached_property
    def _key(self) -> str:
        key = microphone_key(self._stored)
        SECRETS.add(key)
        return key


def microphone_valves(server: OpenWebUI) -> dict[str, Any]:
    """The valves of the function that has the routes now; empty: there is none."""
    installed = server.plugins("functions")
    return next((server.valves("functions", name) for name in (ROUTES, EVENTS) if name in installed), {})
