"""A deployment to upload to, as its admin sees it: what the uploader's tests set up, run and look at."""

import subprocess
from pathlib import Path
from typing import Any

import requests

from deploy.client import OpenWebUI
from harness.fixtures_webui import upload
from harness.ollama_node import Model, OllamaNode
from local.webui import RunningWebUI

Json = dict[str, Any]

FILTER = "model_alias_filter"
MODELS = (Model("llama3:8b"), Model("llava:13b"), Model("qwen2.5:32b", capabilities=("completion", "tools")))
PACK = """\
plugins: [model_alias_filter]
models:
  - {name: gpt-3.5-turbo, local_name: "llama3:8b"}
  - {name: gpt-4, local_name: ["mixtral:8x7b", "qwen2.5:32b"]}
"""
TABLE = "gpt-3.5-turbo = llama3:8b\ngpt-4 = mixtral:8x7b, qwen2.5:32b"


class Target:
    """A deployment to upload to, as its admin sees it.

    Attributes:
        webui: the running server.
        node: the scripted Ollama behind it.
        api: its API as the admin.
        folder: where `pack.yaml` is written.
    """

    def __init__(self, webui: RunningWebUI, node: OllamaNode, api: OpenWebUI, folder: Path) -> None:
        self.webui = webui
        self.node = node
        self.api = api
        self.folder = folder

    def upload(
        self, pack: str, *arguments: str, url: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the script on a `pack.yaml` with this text, through another address where one is given."""
        config = self.folder / "pack.yaml"
        config.write_text(pack)
        through = {"OPEN_WEBUI_URL": url} if url else {}
        return upload(self.webui, str(config), *arguments, environment=through | environment)

    def install(self, pack: str = PACK) -> str:
        """Upload what must succeed, and return what it printed."""
        done = self.upload(pack)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    @property
    def function(self) -> Json:
        return self.api.plugin("functions", FILTER)

    def change_code(self, old: str, new: str) -> None:
        """Install the pack's function in another version, as if an older release had been uploaded."""
        function = self.function
        assert old in function["content"]
        form = {key: function[key] for key in ("id", "name", "meta")}
        content = function["content"].replace(old, new, 1)
        self.api.post(f"/api/v1/functions/id/{FILTER}/update", form | {"content": content})

    @property
    def valves(self) -> Json:
        return self.api.valves("functions", FILTER)

    def set_valves(self, **valves: Any) -> None:
        self.api.post(f"/api/v1/functions/id/{FILTER}/valves/update", valves)

    @property
    def rows(self) -> dict[str, Json]:
        return self.api.model_rows()

    def grants(self, model: str) -> set[tuple[str, str, str]]:
        """Who may use a model: `(kind of principal, its id, permission)`."""
        return {
            (grant["principal_type"], grant["principal_id"], grant["permission"])
            for grant in self.rows[model]["access_grants"]
        }

    def add_row(self, model: str, base: str | None = None, **more: Any) -> None:
        """Make a row as an admin does on the models page."""
        row = {"id": model, "name": model, "base_model_id": base, "meta": {}, "params": {}} | more
        self.api.post("/api/v1/models/create", row)
        self.api.models(refresh=True)

    def change_row(self, model: str, **changes: Any) -> None:
        row = self.api.model_row(model)
        self.api.post("/api/v1/models/model/update", row | changes)

    def state(self) -> Json:
        """Everything that an upload could change, with the times of the last changes."""
        functions = self.api.plugins("functions")
        valves = {name: self.api.valves("functions", name) for name in functions}
        return {"functions": functions, "valves": valves, "rows": self.rows}

    def add_group(self, name: str, *members: str) -> str:
        group: Json = self.api.post("/api/v1/groups/create", {"name": name, "description": ""})
        self.api.post(f"/api/v1/groups/id/{group['id']}/users/add", {"user_ids": list(members)})
        return str(group["id"])

    def clear(self) -> None:
        """Take out functions, tools, rows and groups."""
        for kind in ("functions", "tools"):
            for name in self.api.plugins(kind):
                self._delete(f"/api/v1/{kind}/id/{name}/delete")
        for model in self.rows:
            self.api.post("/api/v1/models/model/delete", {"id": model})
        for group in self.api.group_ids().values():
            self._delete(f"/api/v1/groups/id/{group}/delete")

    def _delete(self, path: str) -> None:
        headers = {"Authorization": f"Bearer {self.api.key}"}
        requests.delete(self.webui.url + path, headers=headers, timeout=60).raise_for_status()
