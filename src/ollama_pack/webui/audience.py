"""Whom published models are for: the words that an admin writes, and the grants that they stand for."""

from collections.abc import Mapping
from typing import Any

from ollama_pack.webui.errors import AudienceError

Grants = frozenset[tuple[str, str, str]]  # principal type, principal id, permission

PUBLIC, ADMIN, GROUP = "public", "admin", "group:"
EVERYBODY: Grants = frozenset({("user", "*", "read")})
NOBODY: Grants = frozenset()  # admins need no grant


def parse_audience(text: str) -> tuple[str, ...]:
    """Read `public`, `admin` or `group:NAME`, several with commas between them.

    Raises:
        AudienceError: a part is none of these, or there is none.
    """
    parts = tuple(" ".join(part.split()) for part in text.split(","))
    for part in parts:
        if not is_audience(part):
            raise AudienceError(part)
    return parts


def is_audience(part: str) -> bool:
    """Whether a text names everybody, the admins or a group."""
    return part in {PUBLIC, ADMIN} or (part.startswith(GROUP) and part != GROUP)


def stated_audience(text: str) -> tuple[str, ...] | None:
    """The audience in a valve; None where it is empty, and none is stated.

    Raises:
        AudienceError: a part of it is not known.
    """
    return parse_audience(text) if text.strip() else None


def audience_grants(audience: tuple[str, ...], groups: Mapping[str, str]) -> tuple[Grants, tuple[str, ...]]:
    """The grants of an audience, and the names of groups in it that Open WebUI does not have.

    Args:
        audience: as `parse_audience` gives it.
        groups: name → id of every group.
    """
    if PUBLIC in audience:
        return EVERYBODY, ()
    names = [part.removeprefix(GROUP).strip() for part in audience if part.startswith(GROUP)]
    known = frozenset(("group", groups[name], "read") for name in names if name in groups)
    return known, tuple(name for name in names if name not in groups)


def grant_forms(grants: Grants) -> list[dict[str, str]]:
    """Grants as Open WebUI's forms have them, in a fixed order."""
    keys = ("principal_type", "principal_id", "permission")
    return [dict(zip(keys, grant, strict=True)) for grant in sorted(grants)]


def grants_in(forms: Any) -> Grants:
    """Grants from the form that Open WebUI has them in."""
    return frozenset(
        (str(one["principal_type"]), str(one["principal_id"]), str(one["permission"]))
        for one in (forms if isinstance(forms, list) else ())
        if isinstance(one, dict)
    )
