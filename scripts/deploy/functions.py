"""Functions of Open WebUI, as steps of a plan."""

from typing import Any

from deploy.client import OpenWebUI
from deploy.installed import InstalledPlugin, refuse_old_server
from deploy.plan import Plan
from deploy.plugin import LocalPlugin
from deploy.shown import message

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
    if function.listed is None:
        plugin.check_valves(wanted)
        function.plan_creation()
        function.plan_valves({}, wanted)
    else:
        function.plan_change(wanted)
    function.plan_flag("is_active", "toggle")
    if plugin.kind == "filter":
        function.plan_flag("is_global", "toggle/global")


class _Function(InstalledPlugin):
    folder, noun = "functions", "function"

    def plan_flag(self, flag: str, route: str) -> None:
        """Switch a flag on. The server can only flip it, so it is read again right before."""

        def switch_on() -> None:
            if not self.server.plugins("functions")[self.plugin.id][flag]:
                self.server.post(f"{self.path}/{route}")

        if self.listed is None or not self.listed[flag]:
            what = message("switch on") if flag == "is_active" else message("apply to all models:")
            self.plan.add(f"{what} {self.plugin.id}", [f"- {flag}: false", f"+ {flag}: true"], switch_on)
