"""Plugins on a Pipelines server, as steps of a plan."""

import hashlib
from typing import Any

from deploy.client import Pipelines
from deploy.plan import Plan, value_diff
from deploy.plugin import LocalPlugin

Json = dict[str, Any]

# A valve in which an upload leaves what it sent: the server tells nothing else of the code that it runs.
DIGEST = "uploaded_digest"


def plan_pipeline(plan: Plan, server: Pipelines, plugin: LocalPlugin, wanted: Json) -> None:
    """Add the steps that upload a pipeline and set its valves.

    An upload makes the server load all its pipelines anew, so it is left out where the code is there.

    Raises:
        DeployError: the server does not accept the key, or a valve would be refused.
    """
    installed = plugin.id in server.installed()
    stored = server.valves(plugin.id) if installed else {}
    content = plugin.content.encode()
    wanted = wanted | {DIGEST: hashlib.sha256(content).hexdigest()[:16]}
    plugin.check_valves(stored | wanted)
    if stored.get(DIGEST) != wanted[DIGEST]:
        plan.add(
            f"upload pipeline {plugin.id}",
            [f"+ {plugin.summary}"],
            lambda: server.send_file("/pipelines/upload", f"{plugin.id}.py", content),
        )
    if stored | wanted != stored:
        path = f"/{plugin.id}/valves/update"
        plan.add(
            f"set valves of pipeline {plugin.id}",
            value_diff(stored, stored | wanted),
            lambda: server.post(path, server.valves(plugin.id) | wanted),
        )
