"""Users of the running Open WebUI, their groups and their language. Imports `open_webui` when called."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from ollama_pack.base.messages import ENGLISH


async def user_names(ids: Sequence[str]) -> dict[str, str]:
    """The names of users by their ids; those that are gone are left out."""
    from open_webui.models.users import Users  # noqa: PLC0415 - see the top of this module

    found = await Users.get_users_by_user_ids(list(ids))
    return {str(user.id): str(user.name) for user in found}


async def group_names(user: Mapping[str, Any]) -> frozenset[str]:
    """Names of the groups that a user is a member of, inherited ones included."""
    return frozenset(group.name for group in await _groups_of(user))


async def all_group_names() -> frozenset[str]:
    """Names of the groups that there are."""
    from open_webui.models.groups import Groups  # noqa: PLC0415 - see the top of this module

    return frozenset(group.name for group in await Groups.get_all_groups())


async def group_ids_of(user: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the same groups."""
    return tuple(str(group.id) for group in await _groups_of(user))


async def _groups_of(user: Mapping[str, Any]) -> Any:
    from open_webui.models.groups import Groups  # noqa: PLC0415 - see the top of this module

    look_up = Groups.get_groups_by_member_id
    inherits = "include_inherited" in signature(look_up).parameters  # groups within groups came after 0.11.2
    return await (look_up(user["id"], include_inherited=True) if inherits else look_up(user["id"]))


def reader_language(metadata: Mapping[str, Any], request: Any) -> str:
    """What the user has chosen in Open WebUI's settings; of a client of the API, what its request accepts."""
    chosen = (metadata.get("variables") or {}).get("{{USER_LANGUAGE}}")
    return str(chosen or accepted_language(request))


def accepted_language(request: Any) -> str:
    """A request's `Accept-Language`."""
    return str(request.headers.get("accept-language") or ENGLISH) if request else ENGLISH
