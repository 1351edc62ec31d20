"""What a client gets instead of an answer, in the form of each API that clients speak."""

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Literal

ApiForm = Literal["openai", "anthropic", "ollama"]

# Anthropic names an error by its status; others are `api_error`.
_ANTHROPIC_TYPES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a client gets it.

    Attributes:
        status: of HTTP, where the answer has not begun.
        message: the sentence for whoever asked.
        code: a word that programs can act on; None: none.
        param: the field of the request that is at fault; None: none.
        retry_after: seconds after which a new try makes sense; None: waiting does not help.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    def translated(self, language: str) -> "Refusal":
        """The same in a reader's language. Another plugin's sentence translates itself: it has the words."""
        by_itself = getattr(self.message, "translated", None)
        return replace(self, message=by_itself(language)) if by_itself else self

    @property
    def kind(self) -> str:
        """OpenAI's name for errors of this kind."""
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
        is_limit = self.status == HTTPStatus.TOO_MANY_REQUESTS
        return "rate_limit_error" if is_limit else "invalid_request_error"

    @property
    def headers(self) -> dict[str, str]:
        """Of the HTTP response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self, form: ApiForm = "openai") -> dict[str, Any]:
        """The body of the HTTP response; OpenAI's is also the event that ends a stream."""
        if form == "ollama":
            return {"error": self.message}
        if form == "anthropic":
            kind = _ANTHROPIC_TYPES.get(self.status) or (
                "api_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
            )
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        # Open WebUI's page looks for the sentence in `detail`; a stream has no place for status and headers
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
                "status": int(self.status),
                "retry_after": self.retry_after,
                "detail": self.message,
            }
        }
