"""Functions of Open WebUI, as steps of a plan."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deploy.client import OpenWebUI
from deploy.errors import DeployError
from deploy.plan import Plan, value_diff, valves_diff
from deploy.plugin import AUTHOR, LocalPlugin

Json = dict[str, Any]


def plan_function(plan: Plan, server: OpenWebUI, plugin: LocalPlugin, wanted: Json) -> None:
    """Add the steps that install a function with its valves, active, and global where it is a filter.

    Args:
        plan: where the steps go.
        server: the Open WebUI.
        plugin: the function's file.
        wanted: valves that pack.yaml sets; those it does not mention keep what they have.

    Raises:
        DeployError: the server is too old, the id is taken by a function that is not the pack's, or a
            valve would be refused.
    """
    refuse_old_server(server, plugin)
    function = _Function(plan, server, plugin)
    if function.installed is None:
        plugin.check_valves(wanted)
        function.plan_creation()
        function.plan_valves({}, wanted)
    else:
        current = function.current()
        stored = server.valves("functions", plugin.id)
        plugin.check_valves(stored | wanted)
        if plugin.accepts(stored):
            function.plan_update(current)
            function.plan_valves(stored, stored | wanted)
        else:  # the server refuses code that refuses the stored valves, and the old code may refuse the new
            kept = {valve: value for valve, value in stored.items() if valve not in wanted}
            function.plan_valves(stored, kept)
            function.plan_update(current)
            function.plan_valves(kept, stored | wanted)
    function.plan_flag("is_active", "toggle")
    if plugin.kind == "filter":
        function.plan_flag("is_global", "toggle/global")


def refuse_old_server(server: OpenWebUI, plugin: LocalPlugin) -> None:
    """Open WebUI itself looks at the required version in the browser's editor only.

    Raises:
        DeployError: the server is older than the plugin needs.
    """
    needed = plugin.manifest.get("required_open_webui_version", "0")
    if _numbers(server.version) < _numbers(needed):
        raise DeployError(
            f"{plugin.id} needs Open WebUI {needed} or newer, and {server.url} is {server.version}: update it"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


@dataclass(frozen=True)
class _Function:
    plan: Plan
    server: OpenWebUI
    plugin: LocalPlugin

    @cached_property
    def installed(self) -> Json | None:
        """What the server lists of it, before any step."""
        return self.server.plugins("functions").get(self.plugin.id)

    @property
    def path(self) -> str:
        return f"/api/v1/functions/id/{self.plugin.id}"

    @property
    def form(self) -> Json:
        return {
            "id": self.plugin.id,
            "name": self.plugin.name,
            "content": self.plugin.content,
            "meta": {"description": self.plugin.manifest["description"]},
        }

    def plan_creation(self) -> None:
        self.plan.add(
            f"create {self.plugin.kind} {self.plugin.id}",
            [f"+ {self.plugin.summary}"],
            lambda: self.server.post("/api/v1/functions/create", self.form),
        )

    def current(self) -> Json:
        """The installed function with its code, which must be the pack's."""
        current = self.server.plugin("functions", self.plugin.id)
        author = (current["meta"].get("manifest") or {}).get("author")
        if author != AUTHOR:
            raise DeployError(
                f"a function with the id {self.plugin.id!r} is installed already and is not the pack's "
                f"(its author is {author!r}): delete or rename it, or leave it out with `plugins:`"
            )
        return current

    def plan_update(self, current: Json) -> None:
        """Replace code and name where they differ."""
        old, new = ({key: form[key] for key in ("name", "content")} for form in (current, self.form))
        if old != new:
            self.plan.add(
                f"update {self.plugin.kind} {self.plugin.id}",
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

    def plan_flag(self, flag: str, route: str) -> None:
        """Switch a flag on. The server can only flip it, so it is read again right before."""

        def switch_on() -> None:
            if not self.server.plugins("functions")[self.plugin.id][flag]:
                self.server.post(f"{self.path}/{route}")

        if self.installed is None or not self.installed[flag]:
            what = "switch on" if flag == "is_active" else "apply to all models:"
            self.plan.add(f"{what} {self.plugin.id}", [f"- {flag}: false", f"+ {flag}: true"], switch_on)
