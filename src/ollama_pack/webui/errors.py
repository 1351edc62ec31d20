"""What goes wrong between the pack and Open WebUI."""

from ollama_pack.base.messages import message
from ollama_pack.engines.refusals import Refusal
from ollama_pack.errors import PackError


class AudienceError(PackError, ValueError):
    """An audience cannot be read.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        part: the part of the text that is wrong.
    """

    def __init__(self, part: str) -> None:
        super().__init__(
            message(
                "audience: {part!r} is not known: write public (every signed-in user), admin, or group:NAME, "
                "with commas between several",
                part=part,
            )
        )
        self.part = part


class RouterUnavailableError(PackError):
    """The `gpu_router` function cannot be asked. The message says why and what an admin can do."""


class ModelRefusedError(PackError):
    """A model that was asked through Open WebUI gave an error instead of an answer.

    Attributes:
        refusal: what the client gets.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(
            message(
                "the model was asked through Open WebUI and gave the error {status}", status=refusal.status
            )
        )
        self.refusal = refusal


class ClientLeftError(PackError):
    """The client has closed its connection, and wants no answer any more."""


class ModelClosedError(PackError):
    """A user may not use the model that would answer. Open WebUI's own words: whether it exists is not said.

    Attributes:
        model: its id.
    """

    def __init__(self, model: str) -> None:
        super().__init__("Model not found")
        self.model = model


class StoredFileError(PackError):
    """No such file, or none that this user may read: which of the two is not told.

    Attributes:
        wanted: id or name of the file.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(message("the file {wanted!r} was not found: attach it to the chat", wanted=wanted))
        self.wanted = wanted


class UploadError(PackError):
    """A request has no file in it that can be taken. The message says how to send one."""


class UploadTooLargeError(UploadError):
    """The file has too many bytes.

    Attributes:
        limit: bytes.
        actual: bytes: as many as were announced or read.
    """

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(
            message("the file has {actual} bytes or more, the limit is {limit}", actual=actual, limit=limit)
        )
        self.limit = limit
        self.actual = actual


class NoRoomError(PackError):
    """The server has no place for an upload, such as on a full disk: an admin can help."""

    def __init__(self) -> None:
        super().__init__(
            message("the server has no room for the recording now: try again later, or ask an admin")
        )
