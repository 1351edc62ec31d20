"""Tools of Open WebUI, as steps of a plan."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deploy.client import OpenWebUI
from deploy.errors import DeployError
from deploy.functions import refuse_old_server
from deploy.plan import Plan, value_diff, valves_diff
from deploy.plugin import AUTHOR, LocalPlugin
from deploy.rows import EVERYBODY, grants_form, grants_of, readable_grants

Json = dict[str, Any]
Grants = frozenset[tuple[str, str, str]]


def plan_tool(
    plan: Plan, server: OpenWebUI, plugin: LocalPlugin, wanted: Json, grants: Grants | None = None
) -> None:
    """Add the steps that install a tool with its valves, and let people use it.

    Args:
        plan: where the steps go.
        server: the Open WebUI.
        plugin: the tool's file.
        wanted: valves that pack.yaml sets; those it does not mention keep what they have.
        grants: who may use it, where pack.yaml says so; else everybody when it is created, and later
            whoever an admin has chosen.

    Raises:
        DeployError: the server is too old, the id is taken by a tool that is not the pack's, or a valve
            would be refused.
    """
    refuse_old_server(server, plugin)
    tool = _Tool(plan, server, plugin)
    if tool.installed is None:
        plugin.check_valves(wanted)
        tool.plan_creation(EVERYBODY if grants is None else grants)
        tool.plan_valves({}, wanted)
        return
    current = tool.current()
    stored = server.valves("tools", plugin.id)
    plugin.check_valves(stored | wanted)
    if plugin.accepts(stored):
        tool.plan_update(current)
        tool.plan_valves(stored, stored | wanted)
    else:  # the server refuses code that refuses the stored valves, and the old code may refuse the new
        kept = {valve: value for valve, value in stored.items() if valve not in wanted}
        tool.plan_valves(stored, kept)
        tool.plan_update(current)
        tool.plan_valves(kept, stored | wanted)
    if grants is not None:
        tool.plan_grants(grants_of(current), grants)


@dataclass(frozen=True)
class _Tool:
    plan: Plan
    server: OpenWebUI
    plugin: LocalPlugin

    @cached_property
    def installed(self) -> Json | None:
        """What the server lists of it, before any step."""
        return self.server.plugins("tools").get(self.plugin.id)

    @property
    def path(self) -> str:
        return f"/api/v1/tools/id/{self.plugin.id}"

    @property
    def form(self) -> Json:
        return {
            "id": self.plugin.id,
            "name": self.plugin.name,
            "content": self.plugin.content,
            "meta": {"description": self.plugin.manifest["description"]},
        }

    def plan_creation(self, grants: Grants) -> None:
        form = self.form | {"access_grants": grants_form(grants)}
        self.plan.add(
            f"create tool {self.plugin.id}",
            [f"+ {self.plugin.summary}", f"+ access: {readable_grants(grants)}"],
            lambda: self.server.post("/api/v1/tools/create", form),
        )

    def current(self) -> Json:
        """The installed tool with its code, which must be the pack's."""
        current = self.server.plugin("tools", self.plugin.id)
        author = (current["meta"].get("manifest") or {}).get("author")
        if author != AUTHOR:
            raise DeployError(
                f"a tool with the id {self.plugin.id!r} is installed already and is not the pack's "
                f"(its author is {author!r}): delete or rename it, or leave it out with `plugins:`"
            )
        return current

    def plan_update(self, current: Json) -> None:
        """Replace code and name where they differ."""
        old, new = ({key: form[key] for key in ("name", "content")} for form in (current, self.form))
        if old != new:
            self.plan.add(
                f"update tool {self.plugin.id}",
                value_diff(old, new),
                lambda: self.server.post(f"{self.path}/update", self.form),
            )

    def plan_valves(self, old: Json, new: Json) -> None:
        if old != new:
            self.plan.add(
                f"set valves of {self.plugin.id}",
                valves_diff(old, new, self.plugin.secret_valves),
                lambda: self.server.post(f"{self.path}/valves/update", new),
            )

    def plan_grants(self, old: Grants, new: Grants) -> None:
        """Let others use it. What somebody may write stays theirs."""
        writers = frozenset(grant for grant in old if grant[2] != "read")
        if old - writers != new:
            self.plan.add(
                f"set who may use tool {self.plugin.id}",
                value_diff({"access": readable_grants(old - writers)}, {"access": readable_grants(new)}),
                lambda: self.server.post(
                    f"{self.path}/access/update", {"access_grants": grants_form(new | writers)}
                ),
            )
