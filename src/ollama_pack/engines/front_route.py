"""A route in front of a server's own, which sees each answer of a chat before its client does.

Both Open WebUI and the Pipelines server send the status 200 of a stream before they ask a plugin. Whoever
holds the first bytes back can send an error with its status in their place.

starlette, which comes with both servers, is imported when it is needed.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import orjson

from ollama_pack.engines.refusals import ApiForm, Refusal

AsgiMessage = dict[str, Any]
AsgiSend = Callable[[AsgiMessage], Awaitable[None]]


class HoldsBack(Protocol):
    """The way of one answer to its client."""

    async def send(self, message: AsgiMessage) -> None:
        """Take a message of the server's."""


def put_in_front(
    app: Any,
    name: str,
    is_ours: Callable[[Mapping[str, Any]], bool],
    held_back: Callable[[Mapping[str, Any], AsgiSend], HoldsBack],
) -> None:
    """Put a route in front of all others, in place of one of this name.

    Args:
        app: the server's FastAPI application.
        name: of the route.
        is_ours: whether a POST of this scope is a chat.
        held_back: what answers go through; it gets the scope and the server's `send`.
    """
    routes = app.router.routes
    front = _front_route(app, name, is_ours, held_back)
    # in one step: requests look at this very list
    routes[:] = [front, *(route for route in routes if getattr(route, "name", "") != name)]


def take_from_front(app: Any, name: str) -> None:
    """Take the route of this name away."""
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "name", "") != name]


def _front_route(
    app: Any,
    route_name: str,
    is_ours: Callable[[Mapping[str, Any]], bool],
    held_back: Callable[[Mapping[str, Any], AsgiSend], HoldsBack],
) -> Any:
    from starlette.routing import BaseRoute, Match  # noqa: PLC0415 - it comes with the server

    class FrontRoute(BaseRoute):
        """Hands a chat on to the route behind this one."""

        name = route_name
        path = "/"

        def matches(self, scope: Any) -> tuple[Any, AsgiMessage]:
            is_chat = scope["type"] == "http" and scope["method"] == "POST" and is_ours(scope)
            return (Match.FULL if is_chat and self._behind(scope) else Match.NONE), {}

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            found = self._behind(scope)
            if found is not None:
                route, child = found
                scope.update(child)
                await route.handle(scope, receive, held_back(scope, send).send)

        def _behind(self, scope: Any) -> tuple[Any, AsgiMessage] | None:
            for route in app.router.routes:
                if route is not self:
                    match, child = route.matches(scope)
                    if match == Match.FULL:
                        return route, child
            return None

    return FrontRoute()


def path_of(scope: Mapping[str, Any]) -> str:
    """The path of a request, as the application's routes have it."""
    return str(scope["path"]).removeprefix(str(scope.get("root_path") or ""))


def refusal_messages(refusal: Refusal, form: ApiForm) -> tuple[AsgiMessage, AsgiMessage]:
    """A refusal as the whole HTTP response."""
    content = orjson.dumps(refusal.body(form))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **{name.lower(): value for name, value in refusal.headers.items()},
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return (
        {"type": "http.response.start", "status": refusal.status, "headers": raw},
        {"type": "http.response.body", "body": content},
    )
