"""Routes of a plugin on the running Open WebUI. Imports `open_webui` when called, not before."""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import orjson

from ollama_pack.base.messages import message
from ollama_pack.webui.early_errors import tell_leaving

MIN_KEY = 16  # characters
_BEARER = "bearer "
REFUSED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route.

    Attributes:
        method: GET, POST …
        path: from the server's root.
        audience: who is let in; others get Open WebUI's own 401.
        answer: is called with the request and Open WebUI's user; gives JSON or a response.
        lets_in: whether a request is let in that shows no user; then `answer` gets None for the user.
        without: Open WebUI has a route of this path itself, in whose place this one answers: what it would
            answer, for when the plugin is off.
        user_of: gives the user of a request that need not be checked; None: Open WebUI checks it.
        is_chat: it answers chats.
        refused: makes the response for an error that Open WebUI raises, such as 401 without a token; None:
            Open WebUI answers in its own form.
    """

    method: str
    path: str
    audience: Literal["user", "admin"]
    answer: Callable[[Any, Any], Awaitable[Any]]
    lets_in: Callable[[Any], bool] | None = None
    without: Callable[[Any, Any], Awaitable[Any]] | None = None
    user_of: Callable[[Any], Any] | None = None
    refused: Callable[[Any, Any], Any] | None = None
    is_chat: bool = False


def place_routes(app: Any, owner: str, specs: tuple[RouteSpec, ...]) -> None:
    """Make these the routes of a plugin. They come first: Open WebUI has hundreds, which are tried in order.

    Safe to call again: what an earlier call, or earlier code of the same plugin, has placed is replaced.

    Args:
        app: Open WebUI's.
        owner: the plugin's id, which tells its routes from others'.
        specs: none takes the plugin's routes away.
    """
    routes = app.router.routes
    others = [route for route in routes if not _is_of(route, owner)]
    routes[:] = [
        *(_api_route(owner, spec) for spec in specs),
        *others,
    ]  # in one step: requests look at this list


def _is_of(route: Any, owner: str) -> bool:
    return str(getattr(route, "name", "")).startswith(f"{owner}:")


def _api_route(owner: str, spec: RouteSpec) -> Any:
    from fastapi import Depends, HTTPException, Request  # noqa: PLC0415 - it comes with Open WebUI
    from fastapi.responses import JSONResponse, Response  # noqa: PLC0415
    from fastapi.routing import APIRoute  # noqa: PLC0415
    from open_webui.utils.auth import get_admin_user, get_verified_user  # noqa: PLC0415

    allowed = Depends(get_admin_user if spec.audience == "admin" else get_verified_user)

    async def endpoint(request: Request, user: Any = allowed) -> Any:
        return await spec.answer(request, user)

    # Open WebUI compiles a plugin so that annotations are text, which FastAPI would look up in vain.
    endpoint.__annotations__ = {"request": Request, "user": Any}

    class PackRoute(APIRoute):  # type: ignore[misc] # Any, where Open WebUI is not installed
        def get_route_handler(self) -> Callable[[Any], Awaitable[Any]]:
            ask = super().get_route_handler()

            async def handle(request: Any) -> Any:
                user = spec.user_of(request) if spec.user_of else None
                if user is None and not (spec.lets_in and spec.lets_in(request)):
                    return await asked(request)
                answer = await spec.answer(request, user)
                return answer if isinstance(answer, Response) else JSONResponse(answer)

            async def asked(request: Any) -> Any:
                try:
                    return await ask(request)
                except HTTPException as error:
                    if spec.refused is None:
                        raise
                    return spec.refused(request, error)

            return handle

        async def handle(self, scope: Any, receive: Any, send: Any) -> None:
            if not spec.is_chat:
                await super().handle(scope, receive, send)
                return
            await tell_leaving(scope, receive, send, partial(super().handle, scope))

    return PackRoute(
        spec.path,
        endpoint,
        methods=[spec.method],
        name=f"{owner}:{spec.method} {spec.path}",
        response_model=None,
        include_in_schema=False,
    )


def check_route_key(text: str) -> str:
    """A key of a valve as it is; empty: there is none.

    Raises:
        ValueError: it is so short that it could be guessed.
    """
    if 0 < len(text.strip()) < MIN_KEY:
        raise ValueError(
            message(
                "it has {count} characters, and opens a route: take {least} or more",
                count=len(text.strip()),
                least=MIN_KEY,
            )
        )
    return text.strip()


def shows_key(request: Any, key: str) -> bool:
    """Whether a request has this key as its bearer token. An empty key opens nothing."""
    shown = str(request.headers.get("authorization", ""))
    if not key or not shown.lower().startswith(_BEARER):
        return False
    return hmac.compare_digest(shown[len(_BEARER) :].strip().encode(), key.encode())


def not_found() -> Any:
    """The error that answers where a route ought to be gone."""
    from fastapi import HTTPException  # noqa: PLC0415

    return HTTPException(status_code=404, detail="Not Found")


def html_page(text: str, headers: dict[str, str], status: int = 200) -> Any:
    """A page as a response."""
    from starlette.responses import HTMLResponse  # noqa: PLC0415

    return HTMLResponse(text, status, headers)


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    """JSON as a response. Starlette's own takes twenty times as long: seconds for many vectors."""
    from starlette.responses import Response  # noqa: PLC0415

    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def text_answer(text: str, media_type: str, headers: dict[str, str] | None = None, status: int = 200) -> Any:
    """Text as a response of a type."""
    from starlette.responses import Response  # noqa: PLC0415

    return Response(text, status, headers=headers, media_type=media_type)
