"""Plugins on a Pipelines server, as steps of a plan."""

import hashlib
from dataclasses import dataclass
from typing import Any

from deploy.client import Pipelines
from deploy.errors import DeployError
from deploy.plan import Plan, valves_diff
from deploy.plugin import LocalPlugin
from deploy.shown import message

Json = dict[str, Any]

# A valve in which a pipeline of the pack reports the digest of the file that it was loaded from.
DIGEST = "code_digest"


def plan_pipeline(plan: Plan, server: Pipelines, plugin: LocalPlugin, wanted: Json) -> None:
    """Add the steps that upload a pipeline and set its valves.

    An upload makes the server load all its pipelines anew, so it is left out where this code runs already.

    Raises:
        DeployError: the server does not accept the key, the id is taken by a pipeline that is not the pack's,
            or a valve would be refused.
    """
    stored = server.valves(plugin.id) if plugin.id in server.installed() else {}
    fields = plugin.valves.model_fields if plugin.valves else {}
    if stored and DIGEST in fields and DIGEST not in stored:
        raise DeployError(
            message(
                "a pipeline with the id {plugin!r} is installed already and is not the pack's: "
                "delete or rename it, or leave it out with `plugins:`",
                plugin=plugin.id,
            )
        )
    pipeline = _Pipeline(server, plugin)
    plugin.check_valves(stored | wanted)
    if plugin.accepts(stored):
        pipeline.plan_upload(plan, stored)
        pipeline.plan_valves(plan, stored, wanted)
    else:  # the server ends halfway through loading, all pipelines gone, when code refuses the stored valves
        pipeline.plan_valves(plan, stored, wanted)
        pipeline.plan_upload(plan, stored)


@dataclass(frozen=True)
class _Pipeline:
    server: Pipelines
    plugin: LocalPlugin

    def plan_upload(self, plan: Plan, stored: Json) -> None:
        digest = hashlib.sha256(self.plugin.content.encode()).hexdigest()
        if not stored.get(DIGEST) or not digest.startswith(stored[DIGEST]):
            plan.add(
                message("upload pipeline {plugin}", plugin=self.plugin.id),
                [f"+ {self.plugin.summary}"],
                self._upload,
            )

    def plan_valves(self, plan: Plan, stored: Json, wanted: Json) -> None:
        if stored | wanted != stored:
            plan.add(
                message("set valves of pipeline {plugin}", plugin=self.plugin.id),
                valves_diff(stored, stored | wanted, self.plugin.secret_valves),
                lambda: self.server.post(
                    f"/{self.plugin.id}/valves/update", self.server.valves(self.plugin.id) | wanted
                ),
            )

    def _upload(self) -> None:
        """Send the file. The server calls an upload successful even when the file does not load there."""
        plugin = self.plugin
        self.server.send_file("/pipelines/upload", f"{plugin.id}.py", plugin.content.encode())
        require_loaded(self.server, plugin)


def require_loaded(server: Pipelines, plugin: LocalPlugin) -> None:
    """See that a server has loaded a file.

    Raises:
        DeployError: it has not, and does not tell why.
    """
    if plugin.id not in server.installed():
        raise DeployError(
            message(
                "{url} could not load {plugin} and has moved it to its folder `failed`: its log says "
                "why (an older Python, or a package that is missing there)",
                url=server.url,
                plugin=plugin.id,
            )
        )
