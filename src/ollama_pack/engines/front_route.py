"""A route in front of a server's own, which sees each answer of a chat before its client does.

Both Open WebUI and the Pipelines server send the status 200 of a stream before they ask a plugin. Whoever
holds the first bytes back can send an error with its status in their place.

starlette, which comes with both servers, is imported when it is needed.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import orjson

from ollama_pack.engines.refusals import ApiForm, Refusal

AsgiMessage = dict[str, Any]
AsgiScope = Mapping[str, Any]
AsgiReceive = Callable[[], Awaitable[AsgiMessage]]
AsgiSend = Callable[[AsgiMessage], Awaitable[None]]
# Answers a chat: calls the server's own route, which is the last argument, with a `receive` and a `send`.
Around = Callable[
    [AsgiScope, AsgiReceive, AsgiSend, Callable[[AsgiReceive, AsgiSend], Awaitable[None]]], Awaitable[None]
]


def put_in_front(app: Any, name: str, paths: Iterable[str], around: Around) -> None:
    """Put routes in front of all others, in place of those of this name.

    Args:
        app: the server's FastAPI application.
        name: of the routes.
        paths: where chats are posted to. Each has a route of its own: traces name a chat by its route's path.
        around: called for each chat.
    """
    routes = app.router.routes
    front = [_front_route(app, name, path, around) for path in paths]
    # in one step: requests look at this very list
    routes[:] = [*front, *(route for route in routes if getattr(route, "name", "") != name)]


def take_from_front(app: Any, name: str) -> None:
    """Take the routes of this name away."""
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "name", "") != name]


def _front_route(app: Any, route_name: str, chat_path: str, around: Around) -> Any:
    from starlette.routing import BaseRoute, Match  # noqa: PLC0415 - it comes with the server

    class FrontRoute(BaseRoute):
        """Hands a chat on to the route behind this one."""

        name = route_name
        path = chat_path

        def matches(self, scope: Any) -> tuple[Any, AsgiMessage]:
            is_ours = scope["type"] == "http" and scope["method"] == "POST" and path_of(scope) == chat_path
            return (Match.FULL if is_ours and self._behind(scope) else Match.NONE), {}

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            found = self._behind(scope)
            if found is not None:
                route, child = found
                scope.update(child)
                await around(scope, receive, send, partial(route.handle, scope))

        def _behind(self, scope: Any) -> tuple[Any, AsgiMessage] | None:
            for route in app.router.routes:
                if route is not self:
                    match, child = route.matches(scope)
                    if match == Match.FULL:
                        return route, child
            return None

    return FrontRoute()


def path_of(scope: AsgiScope) -> str:
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


async def send_start(send: AsgiSend, start: AsgiMessage) -> None:
    """Send the start of an answer, also while its request is being cancelled: its client may have left.

    A middleware that waits for the start would take its absence for a fault of the server.
    """
    from anyio import CancelScope  # noqa: PLC0415 - it comes with the server

    with CancelScope(shield=True):
        await send(start)
