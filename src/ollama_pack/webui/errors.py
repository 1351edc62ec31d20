"""What goes wrong between the pack and Open WebUI: see the tree in `ollama_pack.errors`."""

from typing import Any

from ollama_pack.errors import PackError


class AudienceError(PackError, ValueError):
    """An audience cannot be read.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        part: the part of the text that is wrong.
    """

    def __init__(self, part: str) -> None:
        super().__init__(
            f"audience: {part!r} is not known: write public (every signed-in user), admin, or group:NAME, "
            "with commas between several"
        )
        self.part = part


class RouterUnavailableError(PackError):
    """The `gpu_router` function cannot be asked. The message says why and what an admin can do."""


class ModelRefusedError(PackError):
    """A model that was asked through Open WebUI gave an error instead of an answer.

    Attributes:
        status: of HTTP.
        body: what the client gets.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"the model was asked through Open WebUI and gave the error {status}")
        self.status = status
        self.body = body
