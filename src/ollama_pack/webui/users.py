"""Users of the running Open WebUI. Imports `open_webui` when called, not before."""

from collections.abc import Sequence


async def user_names(ids: Sequence[str]) -> dict[str, str]:
    """The names of users by their ids; those that are gone are left out."""
    from open_webui.models.users import Users  # noqa: PLC0415 - see the top of this module

    found = await Users.get_users_by_user_ids(list(ids))
    return {str(user.id): str(user.name) for user in found}
