"""Who may use a model: the one rule for what is published, for what is uploaded, and for each chat.

A model that Open WebUI offers by itself has a row (`base_model_id` empty) once an admin has set something
about it: its grants and its switch hold under every name of the model. Without a row it is for admins. An
alias is for those who may use one of its models. Only where an admin has *stated* an audience (pack.yaml, the
valve, grants set by hand) does a name open what is behind it, and even then no model with a row of its own.

Imports `open_webui` when called, not before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.webui.audience import EVERYBODY, NOBODY, Grants
from ollama_pack.webui.model_rows import ExistingRow, existing_row
from ollama_pack.webui.models import reads_all
from ollama_pack.webui.users import group_ids_of


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a model, next to admins.

    Attributes:
        grants: read grants.
        has_row: it has a row; else it is for admins, unless an audience is stated.
        is_on: it is not switched off. What is off is off for admins, too.
    """

    grants: Grants = NOBODY
    has_row: bool = False
    is_on: bool = True


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model that may answer.

    Attributes:
        name: as the nodes, or the alias table, call it.
        ids: those under which Open WebUI offers it itself; none: it does not.
    """

    name: str
    ids: tuple[str, ...]


def own_rows(model: CheckedModel, rows: Mapping[str, ExistingRow]) -> list[ExistingRow]:
    """The rows that are a model's own. Those that are based on another model may be a plain user's."""
    found = (rows[model_id] for model_id in model.ids if model_id in rows)
    return [row for row in found if row.base is None and not row.is_alias and not row.only_hides]


def model_access(model: CheckedModel, rows: Mapping[str, ExistingRow]) -> Access:
    """Who may use a model under its own name.

    Args:
        model: the model.
        rows: at least those with its ids.
    """
    own = own_rows(model, rows)
    active = [row for row in own if row.active]
    return Access(_read_grants(active), has_row=bool(own), is_on=bool(active) or not own)


def alias_access(stated: Grants | None, behind: Iterable[Access]) -> Access:
    """Who may use an alias.

    Args:
        stated: the audience that an admin has stated for it; None: none.
        behind: of each model that may answer for it.
    """
    models = list(behind)
    usable = [access for access in models if access.is_on]
    grants = frozenset(grant for access in usable for grant in access.grants)
    return Access(grants if stated is None else stated, is_on=bool(usable) or not models)


def opened_models(
    stated: Grants | None, models: Iterable[CheckedModel], rows: Mapping[str, ExistingRow]
) -> tuple[str, ...]:
    """The models without a row that a stated audience reaches through an alias only."""
    if not stated:
        return ()
    return tuple(model.name for model in models if not model_access(model, rows).has_row)


def kept_closed(
    stated: Grants | None, models: Iterable[CheckedModel], rows: Mapping[str, ExistingRow]
) -> dict[str, str]:
    """The models whose own rows keep a part of a stated audience out, each with the reason."""
    found: dict[str, str] = {}
    for model in models if stated else ():
        access = model_access(model, rows)
        if not access.is_on:
            found[model.name] = message("an admin has switched it off")
        elif access.has_row and not covers(access.grants, stated or NOBODY):
            found[model.name] = message("an admin has set who may use it")
    return found


def covers(grants: Grants, audience: Grants) -> bool:
    """Whether grants reach a whole audience."""
    return any(who == "*" for _, who, _ in grants) or audience <= grants


def narrowed(stated: Grants, members: frozenset[str] | None, groups: Mapping[str, str]) -> Grants:
    """The part of an audience that meets a condition on groups.

    Args:
        stated: the audience.
        members: names of the groups that the condition names; None: there is no condition.
        groups: name → id of every group.
    """
    if members is None:
        return stated
    meets = frozenset(("group", groups[name], "read") for name in members if name in groups)
    return meets if stated & EVERYBODY else meets & stated


def _read_grants(rows: Iterable[ExistingRow]) -> Grants:
    return frozenset(grant for row in rows for grant in row.grants if grant[2] == "read")


async def usable_models(
    routed_id: str, models: Sequence[CheckedModel], user: Mapping[str, Any]
) -> frozenset[str]:
    """The names of those models that a user may use through one of the router's ids.

    Open WebUI has let the user ask for the id. Its row may be older than the models' own, which hold here.

    Args:
        routed_id: what was asked for, such as `gpu_router.gpt-4`.
        models: what may answer.
        user: who asks, as a pipe gets it.
    """
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    wanted = {routed_id, *(model_id for model in models for model_id in model.ids)}
    stored = await Models.get_models_by_ids(sorted(wanted))
    rows = {row.id: existing_row(row.model_dump()) for row in stored}
    reader = await _reader(user)
    gate = rows.get(routed_id)
    is_opened = gate is not None and gate.base is None and gate.opens and reader.may_read(gate)

    def is_usable(model: CheckedModel) -> bool:
        if own := own_rows(model, rows):
            return any(row.active and reader.may_read(row) for row in own)
        return reader.reads_all or is_opened  # with its switch off, Open WebUI refuses admins, too

    return frozenset(model.name for model in models if is_usable(model))


async def readable_names(names: Iterable[str], user: Mapping[str, Any]) -> frozenset[str]:
    """Of the names that nodes give their models, those of models that a user may use.

    Args:
        names: of models.
        user: who asks: `id` and `role` are enough.
    """
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    reader = await _reader(user)
    if reader.is_admin:
        return frozenset(names)
    ids = {model_id: name for name in names for model_id in (name, f"{ROUTER}{name}")}
    stored = await Models.get_models_by_ids(sorted(ids)) if ids else []
    rows = (existing_row(row.model_dump()) for row in stored)
    return frozenset(ids[row.id] for row in rows if row.active and reader.may_read(row))


@dataclass(frozen=True, slots=True)
class _Reader:
    """A user, as grants know them.

    Attributes:
        principals: kind and id of all that a grant may name for the user.
        user_id: owns rows.
        is_admin: is one; models without a row are for admins.
        reads_all: Open WebUI does not check grants for this user.
    """

    principals: frozenset[tuple[str, str]]
    user_id: str
    is_admin: bool
    reads_all: bool

    def may_read(self, row: ExistingRow) -> bool:
        if self.reads_all or row.owner == self.user_id:
            return True
        return any(
            permission == "read" and (kind, who) in self.principals for kind, who, permission in row.grants
        )


async def _reader(user: Mapping[str, Any]) -> _Reader:
    user_id, is_admin = str(user.get("id") or ""), user.get("role") == "admin"
    if reads_all(user):
        return _Reader(frozenset(), user_id, is_admin=True, reads_all=True)
    groups = (("group", group) for group in await group_ids_of(user))
    return _Reader(frozenset((("user", "*"), ("user", user_id), *groups)), user_id, is_admin, reads_all=False)
