"""Users of the running Open WebUI, and the language that they read. Imports `open_webui` when called."""

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_pack.base.messages import ENGLISH


async def user_names(ids: Sequence[str]) -> dict[str, str]:
    """The names of users by their ids; those that are gone are left out."""
    from open_webui.models.users import Users  # noqa: PLC0415 - see the top of this module

    found = await Users.get_users_by_user_ids(list(ids))
    return {str(user.id): str(user.name) for user in found}


def reader_language(metadata: Mapping[str, Any], request: Any) -> str:
    """What the user has chosen in Open WebUI's settings; of a client of the API, what its request accepts."""
    chosen = (metadata.get("variables") or {}).get("{{USER_LANGUAGE}}")
    return str(chosen or accepted_language(request))


def accepted_language(request: Any) -> str:
    """A request's `Accept-Language`."""
    return str(request.headers.get("accept-language") or ENGLISH) if request else ENGLISH
