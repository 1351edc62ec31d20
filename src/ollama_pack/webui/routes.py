"""Routes of a plugin on the running Open WebUI. Imports `open_webui` when called, not before."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

MAX_LET_IN = 10_000


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route.

    Attributes:
        method: GET, POST …
        path: from the server's root.
        audience: who is let in; others get Open WebUI's own 401.
        answer: is called with the request and Open WebUI's user; gives JSON or a response.
        remember: seconds for which one who was let in is let in again unasked: finding out who somebody is
            costs Open WebUI several times what the rest of a small answer does.
        lets_in: whether a request is let in that shows no user; then `answer` gets None for the user.
        without: Open WebUI has a route of this path itself, in whose place this one answers: what it would
            answer, for when the plugin is off.
    """

    method: str
    path: str
    audience: Literal["user", "admin"]
    answer: Callable[[Any, Any], Awaitable[Any]]
    remember: float = 0.0
    lets_in: Callable[[Any], bool] | None = None
    without: Callable[[Any, Any], Awaitable[Any]] | None = None


class LetIn:
    """Who was let in a moment ago, by what they showed. Bounded; holds digests, not tokens."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nobody yet.

        Args:
            seconds: how long somebody is known.
            clock: monotonic seconds.
        """
        self._seconds = seconds
        self._clock = clock
        self._users: dict[bytes, tuple[float, Any]] = {}

    def find(self, request: Any) -> Any:
        """The user who showed the same a moment ago; None: ask."""
        until, user = self._users.get(_shown_digest(request), (0.0, None))
        return user if self._clock() < until else None

    def add(self, request: Any, user: Any) -> None:
        """Open WebUI has let this one in."""
        if len(self._users) >= MAX_LET_IN:
            self._users.clear()
        self._users[_shown_digest(request)] = (self._clock() + self._seconds, user)


def _shown_digest(request: Any) -> bytes:
    """What tells one caller from another: all headers.

    Open WebUI takes credentials from the authorization, the cookie, the header of API keys, which an admin
    can rename, and from those in which a trusted proxy names the user.
    """
    digest = blake2b(digest_size=16)
    for part in (part for header in sorted(request.headers.raw) for part in header):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def place_routes(app: Any, owner: str, specs: tuple[RouteSpec, ...]) -> None:
    """Make these the routes of a plugin, before the mount that answers whatever is left.

    Safe to call again: what an earlier call, or earlier code of the same plugin, has placed is replaced.

    Args:
        app: Open WebUI's.
        owner: the plugin's id, which tells its routes from others'.
        specs: none takes the plugin's routes away.
    """
    routes = app.router.routes
    others = [route for route in routes if not _is_of(route, owner)]
    first = [_api_route(owner, spec) for spec in specs if spec.without]
    ours = [_api_route(owner, spec) for spec in specs if not spec.without]
    end = next((at for at, route in enumerate(others) if _catches_all(route)), len(others))
    routes[:] = [*first, *others[:end], *ours, *others[end:]]  # in one step: requests look at this very list


def _is_of(route: Any, owner: str) -> bool:
    return str(getattr(route, "name", "")).startswith(f"{owner}:")


def _catches_all(route: Any) -> bool:
    """Whether it is the mount at the root, which Starlette writes as an empty path."""
    return hasattr(route, "app") and getattr(route, "path", None) in {"", "/"}


def _api_route(owner: str, spec: RouteSpec) -> Any:
    from fastapi import Depends, Request  # noqa: PLC0415 - it comes with Open WebUI
    from fastapi.responses import JSONResponse, Response  # noqa: PLC0415
    from fastapi.routing import APIRoute  # noqa: PLC0415
    from open_webui.utils.auth import get_admin_user, get_verified_user  # noqa: PLC0415

    allowed = Depends(get_admin_user if spec.audience == "admin" else get_verified_user)

    known = LetIn(spec.remember)

    async def endpoint(request: Request, user: Any = allowed) -> Any:
        if spec.remember:
            known.add(request, user)
        return await spec.answer(request, user)

    # Open WebUI compiles a plugin so that annotations are text, which FastAPI would look up in vain.
    endpoint.__annotations__ = {"request": Request, "user": Any}

    class Remembering(APIRoute):  # type: ignore[misc] # Any, where Open WebUI is not installed
        def get_route_handler(self) -> Callable[[Any], Awaitable[Any]]:
            ask = super().get_route_handler()

            async def handle(request: Any) -> Any:
                user = known.find(request) if spec.remember else None
                if user is None and not (spec.lets_in and spec.lets_in(request)):
                    return await ask(request)
                answer = await spec.answer(request, user)
                return answer if isinstance(answer, Response) else JSONResponse(answer)

            return handle

    return Remembering(
        spec.path,
        endpoint,
        methods=[spec.method],
        name=f"{owner}:{spec.method} {spec.path}",
        response_model=None,
        include_in_schema=False,
    )


def not_found() -> Any:
    """The error that answers where a route ought to be gone."""
    from fastapi import HTTPException  # noqa: PLC0415

    return HTTPException(status_code=404, detail="Not Found")


def html_page(text: str, headers: dict[str, str]) -> Any:
    """A page as a response."""
    from starlette.responses import HTMLResponse  # noqa: PLC0415

    return HTMLResponse(text, headers=headers)


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
    """JSON as a response."""
    from starlette.responses import JSONResponse  # noqa: PLC0415

    return JSONResponse(value, status, headers)


def text_answer(text: str, media_type: str, headers: dict[str, str] | None = None) -> Any:
    """Text as a response of a type."""
    from starlette.responses import Response  # noqa: PLC0415

    return Response(text, headers=headers, media_type=media_type)
