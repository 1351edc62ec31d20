"""Rows of Open WebUI's models table: they make an alias a model that clients can ask for, and grant it.

Open WebUI answers an id that it does not know with "Model not found" before any plugin runs, and a plain user
needs a row with a read grant at every step: the alias's, and that of each model behind it. Who may use a
model is for `ollama_pack.webui.access` to say: an alias opens models to its audience, but none that an
admin has set it for.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from deploy.client import OpenWebUI
from deploy.config import PackConfig
from deploy.errors import DeployError, ServerError
from deploy.plan import Plan, Trouble, value_diff
from deploy.shown import message
from ollama_pack.aliases.published import candidates_of, groups_behind, models_behind
from ollama_pack.aliases.table import AliasTable
from ollama_pack.engines.model_kinds import named_for_chat
from ollama_pack.engines.routed_names import ROUTER
from ollama_pack.webui.access import CheckedModel, covers, kept_closed, narrowed, opened_models
from ollama_pack.webui.audience import EVERYBODY, GROUP, NOBODY, Grants, grant_forms
from ollama_pack.webui.audience import audience_grants as grants_for
from ollama_pack.webui.model_rows import MARK, ExistingRow, existing_row, grants_in
from ollama_pack.webui.models import ModelCatalogue
from ollama_pack.webui.publication import WantedRow, alias_row, is_our_description, opened_model

Json = dict[str, Any]

SET_BY_ADMIN = message("(Admin Panel → Settings → Models, or Workspace → Models)")
_GRANT_THEM = message("grant it to them {where}, or narrow the audience in pack.yaml", where=SET_BY_ADMIN)
WITHOUT_TOOLS = {
    "builtin_tools": False
}  # a row's capabilities: Open WebUI keeps its own tools from the model


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
    names = list(dict.fromkeys(alias.name for alias in config.aliases if "*" not in alias.name))
    audiences = _audiences(server, config, names)
    rows = _Rows(plan, server, server.models(refresh=True), server.model_rows())
    groups = server.group_ids() if config.table.uses_groups else {}
    needed: dict[str, Grants] = defaultdict(frozenset)
    for name in names:
        audience = audiences[name]
        opened: tuple[str, ...] = ()
        behind: dict[str, frozenset[str] | None] = {ROUTER + name: None}
        if routed:
            audience, opened = rows.through_router(config, name, audience)
        else:
            behind = rows.behind(config.table, name)
        if behind:
            rows.publish(name, next(iter(behind)), audience, candidates_of(config.table, name), opened)
        else:
            plan.problems.append(_nothing_behind(config, name))
        for model, members in behind.items():
            grants = narrowed(audience, members, groups)
            if audience and not grants:
                plan.problems.append(_nobody_meets(name, model, members or frozenset()))
            for hop in rows.hops(model):
                if hop not in names and (routed or audience or not rows.can_use_tools(hop)):
                    needed[hop] |= grants
    for model, grants in needed.items():
        rows.grant(model, grants)
    hidden = rows.hide_twins() if routed and config.router and config.router.hide_models else ()
    rows.withdraw_all_but({*names, *needed, *hidden})


def plan_hidden(plan: Plan, server: OpenWebUI) -> None:
    """Add the steps that hide the connections' models which the router offers as well."""
    _Rows(plan, server, server.models(), server.model_rows()).hide_twins()


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


def _audiences(server: OpenWebUI, config: PackConfig, names: list[str]) -> dict[str, Grants]:
    """The grants of each alias."""
    return audience_grants(server, {name: config.audience(name) for name in names})


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


@dataclass(frozen=True)
class _Rows:
    """The deployment as it was before any step: what it offers, and the rows of its models table."""

    plan: Plan
    server: OpenWebUI
    models: Mapping[str, Json]
    rows: Mapping[str, Json]

    @cached_property
    def stored(self) -> dict[str, ExistingRow]:
        """The rows, as the rule of access takes them."""
        return {model: existing_row(row) for model, row in self.rows.items()}

    def behind(self, table: AliasTable, name: str) -> dict[str, frozenset[str] | None]:
        """Ids of connections' models that may answer for an alias; those of the plainest request first.

        Each with the groups whose members it answers; None: everybody.
        """
        return groups_behind(table, name, self._of_connections)

    def through_router(
        self, config: PackConfig, name: str, audience: Grants
    ) -> tuple[Grants, tuple[str, ...]]:
        """Who gets an alias that the router answers, and the models that it opens to them.

        The router looks at the rows of models at each chat. On the Pipelines server it cannot: there the
        alias is for admins when an admin has closed one of its models to a part of the audience.
        """
        known = {row.id: "" for row in self.stored.values() if row.base is None and not row.is_alias}
        found = models_behind(config.table, name, {**known, **self._of_connections})
        models = [CheckedModel(model, (model,)) for model in found or candidates_of(config.table, name)]
        closed = kept_closed(audience, models, self.stored)
        self.plan.problems.extend(
            Trouble(
                model,
                message("{reason}, and not all who may use {name} are among them", reason=reason, name=name),
                _GRANT_THEM,
            )
            for model, reason in closed.items()
        )
        if closed and "gpu_router" in (config.pipelines or ()):
            return NOBODY, ()
        return audience, opened_models(audience, models, self.stored)

    @cached_property
    def _of_connections(self) -> Mapping[str, str]:
        """The models with their levels; without the router's, which does not answer aliases here."""
        ids = (model for model, about in self.models.items() if not _is_alias(about))
        levels = ModelCatalogue(self.models)
        return {model: levels[model] for model in ids if not model.startswith(ROUTER)}

    def hops(self, model: str) -> list[str]:
        """A model and what its row is based on, which Open WebUI checks one after the other."""
        hops: list[str] = []
        step: str | None = model
        while step and step not in hops:
            hops.append(step)
            step = self.rows.get(step, {}).get("base_model_id")
        return hops

    def publish(
        self, alias: str, base: str, grants: Grants, models: Sequence[str], opened: tuple[str, ...] = ()
    ) -> None:
        """Make an alias a model. Where a connection offers one of that name, the row only grants it.

        Args:
            alias: the name.
            base: id of what answers.
            grants: who may use it.
            models: those that the table names for it.
            opened: the models that they get through it alone.
        """
        is_taken = alias in self.models and not self.models[alias].get("preset")
        row = self.rows.get(alias)
        if row is None or is_marked(row):
            wanted = replace(alias_row(alias, base, grants, models), maker="upload", opens=opened)
            wanted = replace(wanted, base=None) if is_taken else wanted
            self._make(wanted, {"description": _description(wanted, row)})
        elif is_taken:
            self.grant(alias, grants)
        else:
            self.plan.problems.append(
                Trouble(
                    alias,
                    message("a model with this id was made by hand, so it is not published"),
                    message(
                        "delete or rename it under Workspace → Models, or take the alias out of pack.yaml"
                    ),
                )
            )

    def grant(self, model: str, grants: Grants) -> None:
        """Let the audience reach a model behind an alias; what an admin granted by hand is never widened."""
        row = self.rows.get(model)
        if row is None or is_marked(row):
            wanted = opened_model(model, grants, "upload")
            if model.startswith(ROUTER):  # not there yet, perhaps; hidden: the alias is in the picker already
                self._make(wanted, {"hidden": True})
            elif model in self.models:
                self._make(wanted, self._capabilities(model))
        elif not covers(grants_of(row), grants):
            self.plan.problems.append(_kept_by_admin(model))

    def hide_twins(self) -> list[str]:
        """Keep the connections' models out of the picker that the router offers, too; where no row says more.

        Such a row lets nobody in and keeps nobody out: see `ExistingRow.only_hides`.
        """
        twins = [model for model in self.models if f"{ROUTER}{model}" in self.models]
        for model in (one for one in twins if one not in self.rows):
            mark = {MARK: {"kind": "hidden", "id": model, "grants": [], "opened": False}}
            meta = {"hidden": True, **mark}
            write = partial(self._create, model, {"base_model_id": None, "is_active": True}, meta, NOBODY)
            what = message("hide model {model}: {router} is the same", model=model, router=f"{ROUTER}{model}")
            self.plan.add(what, ["+ meta.hidden: true"], write)
        return twins

    def can_use_tools(self, model: str) -> bool:
        """Whether a model can be offered tools; one that nobody can be asked about counts as able."""
        owner = self.models.get(model, {}).get("owned_by")
        if model.startswith(ROUTER):
            return True  # the router keeps Open WebUI's own tools from models that have none
        return owner != "ollama" or self.server.can_use_tools(model)

    def _capabilities(self, model: str) -> Json:
        """What a new row says of a model: Ollama fails a chat that offers tools to one that has none.

        Once it is said an admin decides, so it is not said again.
        """
        is_said = self.rows.get(model, {}).get("meta", {}).get("capabilities") is not None
        return {} if is_said or self.can_use_tools(model) else {"capabilities": WITHOUT_TOOLS}

    def _make(self, asked: WantedRow, about: Json) -> None:
        """Create a row, or change in ours what differs; what an admin added to it stays."""
        model, grants, meta = asked.id, asked.grants, about | asked.mark
        row = self.rows.get(model)
        if row is not None and _has_admins_grants(self.stored[model], grants):
            if not covers(grants_of(row), grants):
                self.plan.problems.append(_kept_by_admin(model))
            grants = grants_of(row)
        wanted = {"base_model_id": asked.base, "is_active": True}
        old = {} if row is None else _shown(row, row["meta"], grants_of(row))
        new = _shown(wanted, (row["meta"] if row else {}) | meta, grants)
        if old != new:
            created = message("create model row {model}", model=model)
            what = created if row is None else message("update model row {model}", model=model)
            write = partial(self._create if row is None else self._update, model, wanted, meta, grants)
            self.plan.add(what, value_diff(old, new), write)

    def _create(self, model: str, wanted: Json, meta: Json, grants: Grants) -> None:
        """Make a row, or take over one that the events function has made in between."""
        form = {"id": model, "name": model, "params": {}, "meta": meta, "access_grants": grant_forms(grants)}
        try:
            self.server.post("/api/v1/models/create", form | wanted)
        except ServerError:
            row = self.server.model_rows().get(model)
            if row is None or not _is_by_events(row):
                raise
            self._update(model, wanted, meta, grants)

    def _update(self, model: str, wanted: Json, meta: Json, grants: Grants) -> None:
        row = self.server.model_row(model)  # as it is by now, so that no admin's change is undone
        form = {key: row[key] for key in ("id", "name", "params", "base_model_id", "is_active")} | wanted
        self.server.post("/api/v1/models/model/update", form | {"meta": row["meta"] | meta})
        if grants_of(row) != grants:
            self._grant(model, grants)

    def _grant(self, model: str, grants: Grants) -> None:
        """Set who may use a row, which Open WebUI 0.12 no longer takes from an update."""
        form = {"id": model, "access_grants": grant_forms(grants)}
        self.server.post("/api/v1/models/model/access/update", form)

    def withdraw_all_but(self, keep: set[str]) -> None:
        """Delete rows that an earlier pack.yaml asked for and this one does not. Others' rows are left alone.

        A row of ours in which an admin has put something stays, for admins only. The row of a model that is
        not there now stays as it is: its connection may only be down.
        """
        why = message("made by an earlier upload, no longer in pack.yaml")
        for model, row in self.rows.items():
            if model in keep or not is_marked(row) or _is_by_events(row):
                continue
            if _kind(row) in {"base", "hidden"} and model not in self.models:
                continue
            if not has_additions(row):
                delete = partial(self.server.post, "/api/v1/models/model/delete", {"id": model})
                self.plan.add(
                    message("delete model row {model}", model=model), [f"- {model} ({why})"], delete
                )
            elif grants_of(row):
                diff = value_diff(
                    {"access": readable_grants(grants_of(row))}, {"access": readable_grants(NOBODY)}
                )
                withdraw = partial(self._grant, model, NOBODY)
                self.plan.add(
                    message("leave model row {model}, with an admin's settings, to admins", model=model),
                    diff,
                    withdraw,
                )


def _description(wanted: WantedRow, row: Json | None) -> str:
    """What the picker shows, unless an admin has written something else there."""
    written = str((row["meta"].get("description") if row else "") or "")
    is_ours = not written or is_our_description(wanted.alias, written)
    return wanted.description if is_ours else written


def is_marked(row: Json) -> bool:
    """Whether the pack made a row: this script or the events function."""
    return existing_row(row).maker != "hand"


def _is_by_events(row: Json) -> bool:
    """Whether `ollama_pack_events` made it: what pack.yaml names is taken over, the rest is left to it."""
    return existing_row(row).maker == "events"


def _has_admins_grants(row: ExistingRow, grants: Grants) -> bool:
    """Whether an admin has changed who may use a row of ours. An older version did not note what it gave."""
    return "grants" in row.mark and row.grants not in (row.given, grants)


def _kept_by_admin(model: str) -> Trouble:
    said = message("an admin has set who may use it, and not all who may use its aliases are among them")
    return Trouble(model, said, _GRANT_THEM)


def _is_hidden(model: Json) -> bool:
    info = model.get("info") or {}
    return bool((info.get("meta") or {}).get("hidden"))


def _kind(row: Json) -> str:
    return str(row["meta"][MARK].get("kind"))


def _is_alias(model: Json) -> bool:
    row = model.get("info") or {"id": None}
    return bool(model.get("preset")) and is_marked(row) and _kind(row) == "alias"


def has_additions(row: Json) -> bool:
    """Whether an admin has put something of their own into a row of ours."""
    mark = row["meta"][MARK]
    ours = {MARK, "description", "hidden", "profile_image_url"}
    added = any(value for key, value in row["meta"].items() if key not in ours and value != WITHOUT_TOOLS)
    # The events function names a row of the router as the router does, also when upload.py takes it over.
    names = {row["id"], row["id"].removeprefix(ROUTER), mark.get("name")}
    return bool(row["params"]) or row["name"] not in names or added


def _shown(row: Json, meta: Json, grants: Grants) -> Json:
    """The parts of a row that the pack decides on, as a diff shows them."""
    parts = {key: row[key] for key in ("base_model_id", "is_active")}
    opens = (meta.get(MARK) or {}).get("opens")
    access = {"access": readable_grants(grants)} | ({"opens to them": opens} if opens else {})
    return parts | {f"meta.{key}": meta[key] for key in meta} | access


def grants_of(row: Json) -> Grants:
    """Who may use a row, or a tool."""
    return grants_in(row.get("access_grants"))


def readable_grants(grants: Grants) -> list[str]:
    """As a diff shows them."""
    return sorted(message("everybody") if grant in EVERYBODY else " ".join(grant) for grant in grants) or [
        message("admins")
    ]
