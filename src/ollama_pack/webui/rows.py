"""Rows of Open WebUI's models table, read and written. Imports `open_webui` when called, not before."""

import logging
from collections.abc import Mapping
from typing import Any

from ollama_pack.webui.audience import EVERYBODY, NOBODY, Grants, grant_forms
from ollama_pack.webui.functions import FunctionState, function_state
from ollama_pack.webui.model_rows import REPLAY, REPLAY_META, REPLAY_NAME, ExistingRow, existing_row
from ollama_pack.webui.publication import (
    CloseRow,
    CreateRow,
    DeleteRow,
    RowChange,
    UpdateRow,
    WantedRow,
    closed_mark,
)

log = logging.getLogger(__name__)


async def read_rows() -> dict[str, ExistingRow]:
    """Every row, by id."""
    from open_webui.models.models import Models  # noqa: PLC0415 - see the top of this module

    return {row.id: existing_row(row.model_dump()) for row in await Models.get_all_models()}


async def group_ids() -> dict[str, str]:
    """Name → id of every group."""
    from open_webui.models.groups import Groups  # noqa: PLC0415

    return {group.name: group.id for group in await Groups.get_all_groups()}


async def write_rows(changes: tuple[RowChange, ...], owner: str) -> list[RowChange]:
    """Make changes, each by itself, and return those that were made.

    What fails is logged: nearly always another replica was faster, and the next look finds nothing to do.

    Args:
        changes: what to do.
        owner: id of the user whose the new rows are.
    """
    done = []
    for change in changes:
        try:
            if await _write_row(change, owner):
                done.append(change)
        except Exception:
            log.exception("%r was not carried out, and is tried again", change)
    return done


async def _write_row(change: RowChange, owner: str) -> bool:
    from open_webui.models.models import Models  # noqa: PLC0415

    match change:
        case CreateRow(row):
            return await _create_row(row, owner)
        case UpdateRow(row, regrant, switch):
            if regrant:  # before the mark: a row with grants that are wanted counts as ours
                await _grant_row(row.id, row.grants)
            return await _remark_row(row.id, row, switch=switch)
        case CloseRow(model):
            await _grant_row(model, NOBODY)
            return await _remark_row(model, None)
        case DeleteRow(model):
            return bool(await Models.delete_model_by_id(model))


async def _create_row(row: WantedRow, owner: str) -> bool:
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    if await Models.get_model_by_id(row.id) is not None:
        return False  # another replica was faster
    form = ModelForm(
        id=row.id,
        name=row.name,
        base_model_id=row.base,
        meta=row.meta_over(None),
        params={},
        access_grants=grant_forms(row.grants),
        is_active=row.active,
    )
    return await Models.insert_new_model(form, owner) is not None


async def _remark_row(model: str, wanted: WantedRow | None, *, switch: bool = False) -> bool:
    """Note in a row what was done to it, and leave what an admin wrote, as it is by now."""
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    row = await Models.get_model_by_id(model)
    if row is None:
        return False
    meta = row.meta.model_dump()
    closed = closed_mark(existing_row(row.model_dump()).mark)
    form = ModelForm(
        id=row.id,
        name=row.name,
        base_model_id=wanted.base if wanted else row.base_model_id,
        meta=wanted.meta_over(meta) if wanted else meta | closed,
        params=row.params.model_dump(),
        is_active=wanted.active if wanted and switch else row.is_active,
    )
    return await Models.update_model_by_id(model, form) is not None


async def _grant_row(model: str, grants: Grants) -> None:
    from open_webui.models.access_grants import AccessGrants  # noqa: PLC0415

    await AccessGrants.set_access_grants("model", model, grant_forms(grants))


async def share_replay() -> bool:
    """Hide the response cache's model from the picker and share it with everybody, where it has no row yet.

    False: the function is not there, or off.
    """
    state = await function_state(REPLAY)
    if state.active:
        await _make_replay_row(state)
    return state.active


async def _make_replay_row(state: FunctionState) -> None:
    from open_webui.models.models import ModelForm, Models  # noqa: PLC0415

    if await Models.get_model_by_id(REPLAY) is not None:
        return
    form = ModelForm(
        id=REPLAY,
        name=REPLAY_NAME,
        base_model_id=None,
        meta=REPLAY_META,
        params={},
        access_grants=grant_forms(EVERYBODY),
        is_active=True,
    )
    await Models.insert_new_model(form, state.owner)  # None: another worker was faster


def listed_models(app: Any) -> dict[str, Mapping[str, Any]]:
    """Open WebUI's list of models as of its last look, by id; those of rows have `preset`."""
    return {str(model): about for model, about in app.state.MODELS.items()}


async def refresh_models(app: Any) -> None:
    """Have Open WebUI look at its connections and rows anew, as its own start does."""
    from open_webui.utils.models import get_all_models  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415 - it comes with Open WebUI

    nobody = ("127.0.0.1", 0)
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/internal",
        "query_string": b"",
        "headers": [],
        "client": nobody,
        "server": nobody,
        "app": app,
    }
    await get_all_models(Request(scope), refresh=True)
