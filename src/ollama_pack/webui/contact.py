"""The way from the events function to the running `gpu_router`: another plugin, which may not be there."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.base.time_limit import time_limit
from ollama_pack.engines.body import object_at
from ollama_pack.webui.errors import RouterUnavailableError
from ollama_pack.webui.functions import function_state, live_function

log = logging.getLogger(__name__)

ROUTER_ID = "gpu_router"
ASK_SECONDS = 5.0
PLAN_SECONDS = 55.0  # that a plan may take; a proxy in front of Open WebUI usually waits a minute

ABSENT = message(
    "gpu_router is not installed: install it (upload.py, or Admin Panel → Functions), and its nodes show here"
)
SWITCHED_OFF = message("gpu_router is switched off: switch it on under Admin Panel → Functions")


class RouterContact:
    """Asks the router of this process. They share no code, so its answers are looked at, not trusted."""

    def __init__(self, app: Any) -> None:
        """Ask nothing yet; `app` is Open WebUI's."""
        self._app = app
        self._said: dict[str, str] = {}

    async def load(self) -> Mapping[str, Any]:
        """The load of all nodes.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("system_load"))

    async def dashboard(self) -> Mapping[str, Any]:
        """What an admin may want to see.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("dashboard"))

    async def metrics(self) -> str:
        """What it did, in Prometheus' text format.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        told = await self._ask("metrics")
        return told if isinstance(told, str) else ""

    async def models(self) -> list[dict[str, Any]]:
        """The models and aliases that it offers now.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        told = await self._ask("routed_models")
        return [model for model in told if isinstance(model, dict) and isinstance(model.get("id"), str)]

    async def pull(self, model: str, nodes: list[str]) -> Mapping[str, Any]:
        """Begin to pull a model at nodes; what upkeep does then.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("pull", model, nodes))

    async def stop_pull(self) -> Mapping[str, Any]:
        """Stop the pull that is under way; what upkeep does then.

        Raises:
            RouterUnavailableError: the router cannot be asked.
        """
        return object_at(await self._ask("stop_pull"))

    async def plan(self, context: int, users: int, chats: list[dict[str, Any]]) -> Mapping[str, Any]:
        """A plan of what to have where, for what people asked for.

        Raises:
            RouterUnavailableError: the router cannot be asked, or is not done in time.
        """
        return object_at(await self._ask("plan", context, users, chats, seconds=PLAN_SECONDS))

    async def _ask(self, method: str, *arguments: Any, seconds: float = ASK_SECONDS) -> Any:
        try:
            answer = await self._ask_once(method, arguments, seconds)
        except RouterUnavailableError as error:
            self._tell(method, str(error))
            raise
        self._said.pop(method, None)
        return answer

    async def _ask_once(self, method: str, arguments: Sequence[Any], seconds: float) -> Any:
        state = await function_state(ROUTER_ID)
        if not state.active:
            raise RouterUnavailableError(SWITCHED_OFF if state.installed else ABSENT)
        try:
            async with time_limit(seconds):  # it may be loaded first
                router = await live_function(self._app, ROUTER_ID, state)
                return await _method(router, method)(*arguments)
        except TimeoutError:
            raise RouterUnavailableError(
                message(
                    "gpu_router did not answer {method} within {seconds:g} s: see the server's log",
                    method=method,
                    seconds=seconds,
                )
            ) from None
        except RouterUnavailableError:
            raise
        except Exception as error:
            raise RouterUnavailableError(
                message(
                    "gpu_router failed at {method} ({kind}: {error}): see its valves",
                    method=method,
                    kind=type(error).__name__,
                    error=error,
                )
            ) from error

    def _tell(self, method: str, fault: str) -> None:
        """Log a fault once, not at every question; that there is no router is none."""
        if fault not in {ABSENT, SWITCHED_OFF, *self._said.values()}:
            log.warning("%s", fault)
        self._said[method] = fault


def _method(router: Any, name: str) -> Any:
    if (method := getattr(router, name, None)) is None:
        reason = message(
            "the installed gpu_router has no {name}: update it to the version of this plugin", name=name
        )
        raise RouterUnavailableError(reason)
    return method
