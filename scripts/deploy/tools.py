"""Tools of Open WebUI, as steps of a plan."""

from typing import Any

from deploy.client import OpenWebUI
from deploy.installed import InstalledPlugin, refuse_old_server
from deploy.plan import Plan, value_diff
from deploy.plugin import LocalPlugin
from deploy.rows import grants_of, readable_grants
from deploy.shown import message
from ollama_pack.webui.audience import EVERYBODY, Grants, grant_forms

Json = dict[str, Any]


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
    if tool.listed is None:
        plugin.check_valves(wanted)
        users = EVERYBODY if grants is None else grants
        tool.plan_creation(f"+ access: {readable_grants(users)}", access_grants=grant_forms(users))
        tool.plan_valves({}, wanted)
        return
    current = tool.plan_change(wanted)
    if grants is not None:
        tool.plan_grants(grants_of(current), grants)


class _Tool(InstalledPlugin):
    folder, noun = "tools", "tool"

    def plan_grants(self, old: Grants, new: Grants) -> None:
        """Let others use it. What somebody may write stays theirs."""
        writers = frozenset(grant for grant in old if grant[2] != "read")
        if old - writers != new:
            self.plan.add(
                message("set who may use tool {plugin}", plugin=self.plugin.id),
                value_diff({"access": readable_grants(old - writers)}, {"access": readable_grants(new)}),
                lambda: self.server.post(
                    f"{self.path}/access/update", {"access_grants": grant_forms(new | writers)}
                ),
            )
