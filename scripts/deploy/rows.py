"""Rows of Open WebUI's models table: they make an alias a model that clients can ask for, and grant it.

Open WebUI answers an id that it does not know with "Model not found" before any plugin runs, and a plain user
needs a row with a read grant at every step: the alias's, and that of each model behind it.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from deploy.client import OpenWebUI
from deploy.config import ADMIN, GROUP, PUBLIC, PackConfig
from deploy.errors import DeployError, ServerError
from deploy.plan import Plan, value_diff
from ollama_pack.aliases.published import models_behind
from ollama_pack.aliases.table import AliasTable
from ollama_pack.engines.routed_names import ROUTER
from ollama_pack.webui.models import ModelCatalogue

Json = dict[str, Any]
Grants = frozenset[tuple[str, str, str]]  # principal type, principal id, permission

EVENTS = "ollama_pack_events"
MARK = "ollama_pack"  # in a row's meta: the pack made it, and may change or delete it
EVERYBODY: Grants = frozenset({("user", "*", "read")})
NOBODY: Grants = frozenset()  # admins need no grant
WITHOUT_TOOLS = {
    "builtin_tools": False
}  # a row's capabilities: Open WebUI keeps its own tools from the model
GRANT_KEYS = ("principal_type", "principal_id", "permission")


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
    needed: dict[str, Grants] = defaultdict(frozenset)
    for name in names:
        behind = [ROUTER + name] if routed else rows.behind(config.table, name)
        if behind:
            rows.publish(name, behind[0], audiences[name])
        else:
            plan.problems.append(_nothing_behind(config, name))
        for hop in (hop for model in behind for hop in rows.hops(model)):
            if hop not in names and (routed or audiences[name] or not rows.can_use_tools(hop)):
                needed[hop] |= audiences[name]
    for model, grants in needed.items():
        rows.grant(model, grants)
    rows.withdraw_all_but({*names, *needed})


def unanswered(config: PackConfig, models: Collection[str]) -> list[str]:
    """The published names that the router does not offer, though it is installed: as problems.

    Args:
        config: what the deployment should look like.
        models: ids of the models that it offers.
    """
    names = dict.fromkeys(alias.name for alias in config.aliases if "*" not in alias.name)
    return [_nothing_behind(config, name) for name in names if ROUTER + name not in models]


def _nothing_behind(config: PackConfig, name: str) -> str:
    named = (model for alias in config.aliases if alias.name == name for model in alias.local_name)
    models = ", ".join(dict.fromkeys(named))
    return (
        f"{name}: none of its models is there ({models}): pull one (`ollama pull`), "
        "or see whether Open WebUI reaches its connections or nodes, and run this again"
    )


def _audiences(server: OpenWebUI, config: PackConfig, names: list[str]) -> dict[str, Grants]:
    """The grants of each alias."""
    return audience_grants(server, {name: config.audience(name) for name in names})


def audience_grants(server: OpenWebUI, wanted: Mapping[str, Collection[str]]) -> dict[str, Grants]:
    """The grants that audiences stand for, by name.

    Raises:
        DeployError: one names a group that Open WebUI does not have.
    """
    groups = (
        server.group_ids() if any(who.startswith(GROUP) for one in wanted.values() for who in one) else {}
    )

    def grants(who: str) -> Grants:
        if who in {PUBLIC, ADMIN}:
            return EVERYBODY if who == PUBLIC else NOBODY
        group = who.removeprefix(GROUP)
        if group not in groups:
            known = ", ".join(sorted(groups)) or "none"
            raise DeployError(f"audience: Open WebUI has no group {group!r} (it has: {known})")
        return frozenset({("group", groups[group], "read")})

    return {name: frozenset().union(*map(grants, audience)) for name, audience in wanted.items()}


@dataclass(frozen=True)
class _Rows:
    """The deployment as it was before any step: what it offers, and the rows of its models table."""

    plan: Plan
    server: OpenWebUI
    models: Mapping[str, Json]
    rows: Mapping[str, Json]

    def behind(self, table: AliasTable, name: str) -> list[str]:
        """Ids of connections' models that may answer for an alias; those of the plainest request first."""
        return list(models_behind(table, name, self._of_connections))

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

    def publish(self, alias: str, base: str, grants: Grants) -> None:
        """Make an alias a model. Where a connection offers one of that name, the row only grants it."""
        is_taken = alias in self.models and not self.models[alias].get("preset")
        row = self.rows.get(alias)
        if row is None or is_marked(row):
            meta = {"description": _description(alias, base, row)} | _mark(alias, "alias")
            self._make(alias, None if is_taken else base, meta, grants)
        elif is_taken:
            self.grant(alias, grants)
        else:
            self.plan.problems.append(
                f"{alias}: a model with this id was made by hand, so it is not published: "
                "delete or rename it under Workspace → Models, or take the alias out of pack.yaml"
            )

    def grant(self, model: str, grants: Grants) -> None:
        """Let the audience reach a model behind an alias; what an admin granted by hand is never widened."""
        row = self.rows.get(model)
        if row is None or is_marked(row):
            if model.startswith(ROUTER):  # not there yet, perhaps; hidden: the alias is in the picker already
                self._make(model, None, _mark(model, "base") | {"hidden": True}, grants)
            elif model in self.models:
                self._make(model, None, _mark(model, "base") | self._capabilities(model), grants)
        elif not grants_of(row) & EVERYBODY and not grants <= grants_of(row):
            self.plan.problems.append(
                f"{model}: an admin has set who may use it, and not all who may use its aliases are among "
                "them: grant it to them (Admin Panel → Settings → Models, or Workspace → Models), "
                "or narrow the audience in pack.yaml"
            )

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

    def _make(self, model: str, base: str | None, meta: Json, grants: Grants) -> None:
        """Create a row, or change in ours what differs; what an admin added to it stays."""
        row = self.rows.get(model)
        wanted = {"base_model_id": base, "is_active": True}
        old = {} if row is None else _shown(row, row["meta"], grants_of(row))
        new = _shown(wanted, (row["meta"] if row else {}) | meta, grants)
        if old != new:
            what = "create" if row is None else "update"
            write = partial(self._create if row is None else self._update, model, wanted, meta, grants)
            self.plan.add(f"{what} model row {model}", value_diff(old, new), write)

    def _create(self, model: str, wanted: Json, meta: Json, grants: Grants) -> None:
        """Make a row, or take over one that the events function has made in between."""
        form = {"id": model, "name": model, "params": {}, "meta": meta, "access_grants": grants_form(grants)}
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
        form = {"id": model, "access_grants": grants_form(grants)}
        self.server.post("/api/v1/models/model/access/update", form)

    def withdraw_all_but(self, keep: set[str]) -> None:
        """Delete rows that an earlier pack.yaml asked for and this one does not. Others' rows are left alone.

        A row of ours in which an admin has put something stays, for admins only. The row of a model that is
        not there now stays as it is: its connection may only be down.
        """
        why = "made by an earlier upload, no longer in pack.yaml"
        for model, row in self.rows.items():
            if model in keep or not is_marked(row) or _is_by_events(row):
                continue
            if _kind(row) == "base" and model not in self.models:
                continue
            if not has_additions(row):
                delete = partial(self.server.post, "/api/v1/models/model/delete", {"id": model})
                self.plan.add(f"delete model row {model}", [f"- {model} ({why})"], delete)
            elif grants_of(row):
                diff = value_diff(
                    {"access": readable_grants(grants_of(row))}, {"access": readable_grants(NOBODY)}
                )
                withdraw = partial(self._grant, model, NOBODY)
                self.plan.add(f"leave model row {model}, with an admin's settings, to admins", diff, withdraw)


def _description(alias: str, base: str, row: Json | None) -> str:
    """What the picker shows, unless an admin has written something else there."""
    start = f"{alias} is answered by "
    written = str((row["meta"].get("description") if row else "") or start)
    return f"{start}{base} or what the alias table prefers." if written.startswith(start) else written


def _mark(model: str, kind: str) -> Json:
    """With the id, so that an admin's clone of our row, which copies `meta`, is not taken for ours."""
    return {MARK: {"kind": kind, "id": model}}


def is_marked(row: Json) -> bool:
    """Whether the pack made a row: this script or the events function."""
    mark = (row.get("meta") or {}).get(MARK)
    return isinstance(mark, dict) and mark.get("id") == row["id"]


def _is_by_events(row: Json) -> bool:
    """Whether `ollama_pack_events` made it: what pack.yaml names is taken over, the rest is left to it."""
    return is_marked(row) and row["meta"][MARK].get("by") == EVENTS


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
    return parts | {f"meta.{key}": meta[key] for key in meta} | {"access": readable_grants(grants)}


def grants_form(grants: Grants) -> list[dict[str, str]]:
    """As Open WebUI takes them."""
    return [dict(zip(GRANT_KEYS, grant, strict=True)) for grant in sorted(grants)]


def grants_of(row: Json) -> Grants:
    """Who may use a row, or a tool."""
    return frozenset(
        (grant["principal_type"], grant["principal_id"], grant["permission"])
        for grant in row.get("access_grants") or ()
    )


def readable_grants(grants: Grants) -> list[str]:
    """As a diff shows them."""
    return sorted("everybody" if grant in EVERYBODY else " ".join(grant) for grant in grants) or ["admins"]
