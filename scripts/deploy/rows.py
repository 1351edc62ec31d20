"""Rows of Open WebUI's models table, as steps of a plan: they make an alias a model that clients can ask for.

Open WebUI answers an id that it does not know with "Model not found" before any plugin runs, and a plain user
needs a row with a read grant at every step: the alias's, and that of each model behind it. As for the
events function, `ollama_pack.services.offer` decides which rows there should be, `ollama_pack.webui.access`
who may use a model, and `ollama_pack.webui.publication` what to write.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from deploy.client import OpenWebUI
from deploy.config import PackConfig
from deploy.errors import DeployError, ServerError
from deploy.plan import Plan, Trouble, value_diff
from deploy.shown import message, translated
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.engines.model_kinds import named_for_chat
from ollama_pack.services.offer import StatedAliases, StatedRows, stated_rows, twin_rows
from ollama_pack.webui import publication
from ollama_pack.webui.audience import EVERYBODY, GROUP, NOBODY, Grants, grant_forms, grants_in
from ollama_pack.webui.audience import audience_grants as grants_for
from ollama_pack.webui.model_rows import MARK, ExistingRow, existing_row
from ollama_pack.webui.publication import (
    ADMINS_ROW,
    BY_HAND,
    CloseRow,
    CreateRow,
    DeleteRow,
    RowPlan,
    UpdateRow,
    WantedRow,
    closed_mark,
)

Json = dict[str, Any]

SET_BY_ADMIN = message("(Admin Panel → Settings → Models, or Workspace → Models)")
_GRANT_THEM = message("grant it to them {where}, or narrow the audience in pack.yaml", where=SET_BY_ADMIN)


def plan_rows(plan: Plan, server: OpenWebUI, config: PackConfig, *, routed: bool = False) -> None:
    """Add the steps that publish each concrete alias and make the models behind it reachable.

    What cannot be done (no model installed, a row that an admin made by hand) becomes a problem of the plan.

    Args:
        plan: gets the steps.
        server: the deployment.
        config: what it should look like.
        routed: aliases are answered through `gpu_router`, which finds the model itself.

    Raises:
        DeployError: an audience names a group that Open WebUI does not have.
    """
    names = dict.fromkeys(alias.name for alias in config.aliases if "*" not in alias.name)
    stated = StatedAliases(
        config.table,
        audience_grants(server, {name: config.audience(name) for name in names}),
        routed=routed,
        router_sees_rows="gpu_router" not in (config.pipelines or ()),
        hides_twins=bool(routed and config.router and config.router.hide_models),
    )
    models, rows = server.models(refresh=True), stored_rows(server)
    groups = server.group_ids() if config.table.uses_groups else {}
    found = stated_rows(stated, models, rows, groups, partial(_takes_tools, server, models))
    plan.problems += _problems(found, config)
    _add_steps(
        plan, server, rows, publication.plan_rows(found.rows, rows, spared=found.spared, maker="upload")
    )


def plan_hidden(plan: Plan, server: OpenWebUI) -> None:
    """Add the steps that hide the connections' models which the router offers as well."""
    rows = stored_rows(server)
    twins = twin_rows(server.models(), rows)
    _add_steps(plan, server, rows, publication.plan_rows(twins, rows, spared=rows.keys(), maker="upload"))


def stored_rows(server: OpenWebUI) -> dict[str, ExistingRow]:
    """Every row of the models table, by id."""
    return {model: existing_row(row) for model, row in server.model_rows().items()}


def listed_twice(models: Mapping[str, Json]) -> list[str]:
    """The connections' models that the picker shows next to the same ones of the router.

    Args:
        models: what the deployment offers, by id.
    """
    shown = {model for model, about in models.items() if not _is_hidden(about)}
    return sorted(model for model in shown if not models[model].get("preset") and f"{ROUTER}{model}" in shown)


def unanswered(config: PackConfig, models: Collection[str]) -> list[Trouble]:
    """The published names that the router does not offer, though it is installed: as problems.

    Those that stand for embedders alone are the gateway's: they are no models to chat with.

    Args:
        config: what the deployment should look like.
        models: ids of the models that it offers.
    """
    chatting = [alias for alias in config.aliases if any(map(named_for_chat, alias.local_name))]
    names = dict.fromkeys(alias.name for alias in chatting if "*" not in alias.name)
    return [_nothing_behind(config, name) for name in names if ROUTER + name not in models]


def _nothing_behind(config: PackConfig, name: str) -> Trouble:
    named = (model for alias in config.aliases if alias.name == name for model in alias.local_name)
    models = ", ".join(dict.fromkeys(named))
    return Trouble(
        name,
        message("none of its models is there ({models})", models=models),
        message(
            "pull one (`ollama pull`), or see whether Open WebUI reaches its connections or nodes, and run "
            "this again"
        ),
    )


def _nobody_meets(name: str, model: str, members: frozenset[str]) -> Trouble:
    who = message(" or ").join(map(repr, sorted(members))) or message("several groups at once")
    return Trouble(
        name,
        message(
            "{model} is only for members of {who}, which no grant says of this audience", model=model, who=who
        ),
        message("see that the group exists, or grant the model by hand {where}", where=SET_BY_ADMIN),
    )


def _problems(found: StatedRows, config: PackConfig) -> list[Trouble]:
    """What stands in the way of rows that pack.yaml asks for."""
    closed = (
        Trouble(
            model,
            message("{reason}, and not all who may use {name} are among them", reason=reason, name=name),
            _GRANT_THEM,
        )
        for model, reason, name in found.closed
    )
    lacking = (_nothing_behind(config, name) for name in found.lacking)
    return [*closed, *lacking, *(_nobody_meets(*unmet) for unmet in found.unmet)]


def audience_grants(server: OpenWebUI, wanted: Mapping[str, Collection[str]]) -> dict[str, Grants]:
    """The grants that audiences stand for, by name.

    Raises:
        DeployError: one names a group that Open WebUI does not have.
    """
    names_groups = any(who.startswith(GROUP) for one in wanted.values() for who in one)
    groups = server.group_ids() if names_groups else {}
    found = {}
    for name, audience in wanted.items():
        found[name], unknown = grants_for(tuple(audience), groups)
        if unknown:
            known = ", ".join(sorted(groups)) or message("none")
            raise DeployError(
                message(
                    "audience: Open WebUI has no group {group!r} (it has: {known})",
                    group=unknown[0],
                    known=known,
                )
            )
    return found


def _takes_tools(server: OpenWebUI, models: Mapping[str, Json], model: str) -> bool:
    """Whether a model can be offered tools; one that nobody can be asked about counts as able.

    Ollama fails a chat that offers tools to a model that has none.
    """
    if model.startswith(ROUTER):
        return True  # the router keeps Open WebUI's own tools from models that have none
    return models.get(model, {}).get("owned_by") != "ollama" or server.can_use_tools(model)


def _add_steps(plan: Plan, server: OpenWebUI, rows: Mapping[str, ExistingRow], decided: RowPlan) -> None:
    """Add what was decided, each change as a step, and what is left alone as a problem."""
    why = message("made by an earlier upload, no longer in pack.yaml")
    for change in decided.changes:
        match change:
            case CreateRow(row):
                plan.add(
                    message("create model row {model}", model=row.id),
                    value_diff({}, _shown(row.base, row.meta_over(None), row.grants)),
                    partial(_create, server, row),
                )
            case UpdateRow(row, regrant):
                old = rows[row.id]
                grants = row.grants if regrant else old.grants
                plan.add(
                    message("update model row {model}", model=row.id),
                    value_diff(
                        _shown(old.base, old.meta, old.grants, active=old.active),
                        _shown(row.base, row.meta_over(old.meta), grants),
                    ),
                    partial(_update, server, row, regrant=regrant),
                )
            case DeleteRow(model):
                plan.add(
                    message("delete model row {model}", model=model),
                    [f"- {model} ({why})"],
                    partial(server.post, "/api/v1/models/model/delete", {"id": model}),
                )
            case CloseRow(model):
                plan.add(
                    message("leave model row {model}, with an admin's settings, to admins", model=model),
                    value_diff(
                        {"access": readable_grants(rows[model].grants)}, {"access": readable_grants(NOBODY)}
                    ),
                    partial(_close, server, model),
                )
    plan.problems += (_left_alone(row.id, row.reason) for row in decided.left if row.reason != ADMINS_ROW)


def _left_alone(model: str, reason: str) -> Trouble:
    if reason == BY_HAND:
        return Trouble(
            model,
            message("a model with this id was made by hand, so it is not published"),
            message("delete or rename it under Workspace → Models, or take the alias out of pack.yaml"),
        )
    return Trouble(model, translated(reason), _GRANT_THEM)


def _create(server: OpenWebUI, row: WantedRow) -> None:
    """Make a row, or take over one that the events function has made in between."""
    form: Json = {"id": row.id, "name": row.name, "base_model_id": row.base, "is_active": row.active}
    form |= {"params": {}, "meta": row.meta_over(None), "access_grants": grant_forms(row.grants)}
    try:
        server.post("/api/v1/models/create", form)
    except ServerError:
        current = stored_rows(server).get(row.id)
        if current is None or current.maker != "events":
            raise
        _update(server, row, regrant=True)


def _update(server: OpenWebUI, row: WantedRow, *, regrant: bool) -> None:
    current = server.model_row(row.id)  # as it is by now, so that no admin's change is undone
    meta = row.meta_over(current["meta"])
    _write(server, current, {"base_model_id": row.base, "is_active": row.active, "meta": meta})
    if regrant and grants_of(current) != row.grants:
        set_grants(server, row.id, row.grants)


def _close(server: OpenWebUI, model: str) -> None:
    current = server.model_row(model)
    set_grants(server, model, NOBODY)
    _write(server, current, {"meta": current["meta"] | closed_mark(existing_row(current).mark)})


def release_row(server: OpenWebUI, model: str, grants: Grants) -> None:
    """Take the mark and the pack's grants off a row, as it is by now."""
    current = server.model_row(model)
    meta = {key: value for key, value in (current["meta"] or {}).items() if key != MARK}
    _write(server, current, {"meta": meta})
    if grants_of(current) != grants:
        set_grants(server, model, grants)


def _write(server: OpenWebUI, row: Json, changes: Json) -> None:
    form = {key: row[key] for key in ("id", "name", "params", "base_model_id", "is_active")}
    server.post("/api/v1/models/model/update", form | changes)


def set_grants(server: OpenWebUI, model: str, grants: Grants) -> None:
    """Set who may use a row, which Open WebUI 0.12 no longer takes from an update."""
    form = {"id": model, "access_grants": grant_forms(grants)}
    server.post("/api/v1/models/model/access/update", form)


def _shown(base: str | None, meta: Mapping[str, Any], grants: Grants, *, active: bool = True) -> Json:
    """The parts of a row that the pack decides on, as a diff shows them."""
    opens = (meta.get(MARK) or {}).get("opens")
    access = {"access": readable_grants(grants)} | ({"opens to them": opens} if opens else {})
    about = {f"meta.{key}": value for key, value in meta.items()}
    return {"base_model_id": base, "is_active": active} | about | access


def _is_hidden(model: Json) -> bool:
    info = model.get("info") or {}
    return bool((info.get("meta") or {}).get("hidden"))


def grants_of(row: Json) -> Grants:
    """Who may use a row, or a tool."""
    return grants_in(row.get("access_grants"))


def readable_grants(grants: Grants) -> list[str]:
    """As a diff shows them."""
    return sorted(message("everybody") if grant in EVERYBODY else " ".join(grant) for grant in grants) or [
        message("admins")
    ]
