"""Files of Open WebUI: recordings that a user may read, transcripts that become theirs, and models."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_pack.webui.errors import StoredFileError


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """A file that the user may read.

    Attributes:
        id: its own.
        name: as it was uploaded.
        path: in Open WebUI's storage.
    """

    id: str
    name: str
    path: str


async def readable_recording(file_id: str, user_id: str) -> StoredRecording:
    """A file, by the rule by which Open WebUI's own routes give its content.

    Raises:
        StoredFileError: there is none, or the user may not read it.
    """
    from open_webui.models.files import Files  # noqa: PLC0415 - Open WebUI is imported where it is used
    from open_webui.models.users import Users  # noqa: PLC0415
    from open_webui.utils.access_control.files import has_access_to_file  # noqa: PLC0415

    user, file = await Users.get_user_by_id(user_id), await Files.get_file_by_id(file_id)
    if user is None or file is None or not file.path:
        raise StoredFileError(file_id)
    if (
        file.user_id != user.id
        and user.role != "admin"
        and not await has_access_to_file(file_id, "read", user)
    ):
        raise StoredFileError(file_id)
    return StoredRecording(file.id, str((file.meta or {}).get("name") or file.filename), file.path)


@asynccontextmanager
async def local_copy(recording: StoredRecording) -> AsyncIterator[Path]:
    """The file on this machine. What was fetched from a cloud storage for it goes again, as with Open WebUI.

    Raises:
        StoredFileError: the storage does not have it any more.
    """
    from open_webui.config import STORAGE_LOCAL_CACHE, STORAGE_PROVIDER  # noqa: PLC0415
    from open_webui.storage.provider import Storage  # noqa: PLC0415

    path = Path(await asyncio.to_thread(Storage.get_file, recording.path))
    if not await asyncio.to_thread(path.is_file):
        raise StoredFileError(recording.name)
    try:
        yield path
    finally:
        if STORAGE_PROVIDER != "local" and not STORAGE_LOCAL_CACHE:
            with suppress(OSError):
                await asyncio.to_thread(path.unlink)


async def store_text(request: Any, user_id: str, name: str, text: str, media_type: str) -> dict[str, Any]:
    """Make a text a file of the user's, and give it as messages of a chat have files.

    Args:
        request: Starlette's, or what stands for one.
        user_id: whose it becomes.
        name: of the file.
        text: all of it.
        media_type: such as text/plain.
    """
    from open_webui.models.files import Files  # noqa: PLC0415
    from open_webui.models.users import Users  # noqa: PLC0415
    from open_webui.routers.files import upload_file_handler  # noqa: PLC0415
    from starlette.datastructures import Headers, UploadFile  # noqa: PLC0415

    content = text.encode()
    headers = Headers({"content-type": media_type.partition(";")[0]})
    upload = UploadFile(io.BytesIO(content), size=len(content), filename=name, headers=headers)
    user = await Users.get_user_by_id(user_id)
    stored = await upload_file_handler(request, upload, metadata={}, process=False, user=user)
    await Files.update_file_data_by_id(stored.id, {"content": text, "status": "completed"})  # for its preview
    return {
        "type": "file",
        "id": stored.id,
        "url": stored.id,
        "name": name,
        "content_type": media_type.partition(";")[0],
        "size": len(content),
        "status": "uploaded",
    }


MAX_USER_ID = 64  # characters; Open WebUI's have 36


def model_folders() -> tuple[Path, Path]:
    """The folder of Open WebUI's own Whisper, and one where the pack may put models."""
    from open_webui.config import CACHE_DIR, WHISPER_MODEL_DIR  # noqa: PLC0415 - see the top of this module

    return Path(WHISPER_MODEL_DIR), Path(CACHE_DIR, "ollama_pack", "models")


async def tool_valves(tool_id: str) -> Mapping[str, Any]:
    """The valves of a tool that an admin has set; none where it is not installed."""
    from open_webui.models.tools import Tools  # noqa: PLC0415

    return await Tools.get_tool_valves_by_id(tool_id) or {}


def forwarded_user(headers: Mapping[str, str]) -> str:
    """The user for whom Open WebUI's own microphone asks; empty: the admin does not have it forwarded."""
    from open_webui import env  # noqa: PLC0415

    if not getattr(env, "ENABLE_FORWARD_USER_INFO_HEADERS", False):
        return ""
    name = getattr(env, "FORWARD_USER_INFO_HEADER_USER_ID", "X-OpenWebUI-User-Id")
    return headers.get(name, "")[:MAX_USER_ID]
