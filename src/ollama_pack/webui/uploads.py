"""A recording that comes with a request: in a form, or as the body itself. Imports starlette when called."""

import asyncio
import email.message
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ollama_pack.base.messages import message
from ollama_pack.webui.errors import NoRoomError, UploadError, UploadTooLargeError

log = logging.getLogger(__name__)

FILE_FIELDS = ("file", "audio")
MAX_FIELDS, MAX_FIELD_BYTES = 32, 16 * 2**10
MAX_TYPE = 256  # characters of a Content-Type: parsing takes time by the square of its length
MAX_SHOWN = 100  # characters of what somebody sent, in an error
FORM_BYTES = 2**20  # what a form may have besides the recording
MEMORY_BYTES = 2**20  # a longer recording goes to a file without a name, which vanishes when it is closed
_FORM = "multipart/form-data"
_SEND = message(
    "send it as `file` or `audio` in multipart/form-data, or as the body with Content-Type audio/*"
)


@dataclass(frozen=True, slots=True)
class ReceivedRecording:
    """A recording and what was said with it.

    Attributes:
        file: at its beginning; closed, and gone, after the block.
        fields: of the form, and of the address; of a name that comes twice, all values.
        media: what the body says that it is; empty: it is a form.
        parameters: what it says besides, such as `rate`.
    """

    file: BinaryIO
    fields: Mapping[str, list[str]] = field(default_factory=dict)
    media: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> str:
        """The last value of a field; empty where there is none."""
        return self.fields.get(name, [""])[-1].strip()


@asynccontextmanager
async def received_recording(request: Any, max_bytes: int) -> AsyncIterator[ReceivedRecording]:
    """Read a request's recording, no more of it than is allowed.

    Args:
        request: Starlette's.
        max_bytes: the largest recording.

    Raises:
        UploadTooLargeError: there are more bytes.
        UploadError: there is no recording in it.
        NoRoomError: the disk is full.
    """
    media, told = _content_type(request.headers.get("content-type", ""))
    said = _address_fields(request)
    with ExitStack() as files:
        if media == _FORM:
            form = await _form(request, max_bytes, files)
            fields = said | {name: _texts(form, name) for name in form if _texts(form, name)}
            yield ReceivedRecording(_recording_in(form), fields)
        elif media.startswith(("audio/", "video/")) or media == "application/octet-stream":
            file = files.enter_context(tempfile.SpooledTemporaryFile(MEMORY_BYTES))
            async for piece in _bounded(request, max_bytes, max_bytes):
                with _disk():
                    await asyncio.to_thread(file.write, piece)
            file.seek(0)
            yield ReceivedRecording(file, said, media, told)  # type: ignore[arg-type] # a file in all but name
        else:
            raise UploadError(
                message(
                    "Content-Type {media} is no recording: {how}",
                    media=media or message("(none)"),
                    how=_SEND,
                )
            )


def _content_type(text: str) -> tuple[str, dict[str, str]]:
    """The type of a body in lower case, and its parameters; nothing where nothing is said.

    Raises:
        UploadError: it is longer than any type is.
    """
    if len(text) > MAX_TYPE:
        raise UploadError(
            message(
                "the Content-Type has {count} characters, the limit is {limit}: {how}",
                count=len(text),
                limit=MAX_TYPE,
                how=_SEND,
            )
        )
    kind = email.message.Message()
    kind["Content-Type"] = text
    told = {name.lower(): str(value) for name, value in kind.get_params(failobj=[])[1:]}
    return (kind.get_content_type() if text else ""), told


def _address_fields(request: Any) -> dict[str, list[str]]:
    """The fields in the address.

    Raises:
        UploadError: they are too many, or too long.
    """
    fields: dict[str, list[str]] = {}
    pairs = request.query_params.multi_items()
    if len(pairs) > MAX_FIELDS or any(len(value) > MAX_FIELD_BYTES for _, value in pairs):
        raise UploadError(
            message(
                "the address has {count} fields, or one that is too long: the limits are "
                "{most} fields of {size} KB",
                count=len(pairs),
                most=MAX_FIELDS,
                size=MAX_FIELD_BYTES // 2**10,
            )
        )
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


@contextmanager
def _disk() -> Iterator[None]:
    """Within this, a full disk is an error that the client understands."""
    try:
        yield
    except OSError as error:
        log.warning("a recording could not be kept while it is read: %s", error)
        raise NoRoomError from error


async def _form(request: Any, max_bytes: int, files: ExitStack) -> Any:
    from starlette.formparsers import MultiPartException, MultiPartParser  # noqa: PLC0415 - see the module

    parser = MultiPartParser(
        request.headers,
        _bounded(request, max_bytes + FORM_BYTES, max_bytes),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        with _disk():
            return await parser.parse()
    except MultiPartException as error:
        raise UploadError(
            message("the form cannot be read ({reason}): {how}", reason=error.message, how=_SEND)
        ) from error
    finally:  # one that came only in part is not among the form's items
        for file in getattr(parser, "_files_to_close_on_error", ()):
            files.callback(file.close)


async def _bounded(request: Any, max_bytes: int, limit: int) -> AsyncGenerator[bytes, None]:
    """The body, until it is too long. The rest is read and dropped, or a client would not see the answer.

    Args:
        request: Starlette's.
        max_bytes: of the body.
        limit: of the recording, for the error.

    Raises:
        UploadTooLargeError: it is too long.
        UploadError: whoever sends it has hung up.
    """
    from starlette.requests import ClientDisconnect  # noqa: PLC0415 - see the module

    told = request.headers.get("content-length", "")
    size = int(told) if told.isdecimal() else 0
    seen = 0
    try:
        async for piece in request.stream():
            seen += len(piece)
            if max(seen, size) <= max_bytes:
                yield piece
            elif seen > 2 * max_bytes:
                break
    except ClientDisconnect:
        raise UploadError(message("the client hung up before all of the recording had come")) from None
    if max(seen, size) > max_bytes:
        raise UploadTooLargeError(limit, max(seen, size))


async def drop_body(request: Any, max_bytes: int) -> None:
    """Read a body and forget it, or a client that is refused would not see the answer."""
    with suppress(UploadError):
        async for _ in _bounded(request, max_bytes, max_bytes):
            pass


def _recording_in(form: Any) -> BinaryIO:
    for name in FILE_FIELDS:
        found = form.get(name)
        if found is not None and not isinstance(found, str):
            file: BinaryIO = found.file
            return file
    names = ", ".join(sorted({name for name, _ in form.multi_items()}))[:MAX_SHOWN]
    raise UploadError(
        message(
            "the form has no recording in it (it has: {names}): {how}",
            names=names or message("nothing"),
            how=_SEND,
        )
    )


def _texts(form: Any, name: str) -> list[str]:
    return [value for value in form.getlist(name) if isinstance(value, str)]
