"""title: A scripted router
author: the tests
description: Stands in for gpu_router, and tells what a file says.
license: MIT
required_open_webui_version: 0.11.2
version: 0
"""  # noqa: D205, D415 - frontmatter

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field


class Pipe:
    """The methods of gpu_router that the events function asks, and chats that say who answered."""

    class Valves(BaseModel):
        script: str = Field(default="", description="The file that says what to tell.")
        aliases: str = Field(default="", description="As gpu_router's.")

    def __init__(self) -> None:
        self.valves = self.Valves()

    async def pipes(self) -> list[dict[str, str]]:
        return [{"id": model["id"], "name": model["name"]} for model in await self.routed_models()]

    async def pipe(self, body: dict[str, Any]) -> str:
        return f"{body['model']} answers"

    async def routed_models(self) -> list[dict[str, Any]]:
        said = self._said("routed_models")
        aliases = [{"id": name, "name": name, "alias": True} for name in said["aliases"]]
        return aliases + [{"id": name, "name": name, "alias": False} for name in said["models"]]

    async def system_load(self) -> Any:
        return self._said("system_load")["load"]

    async def dashboard(self) -> Any:
        return self._said("dashboard")["dashboard"]

    async def plan(self, _context: int, _users: int, _chats: list[dict[str, Any]]) -> Any:
        return self._said("plan")["plan"]

    async def pull(self, model: str, nodes: list[str]) -> Any:
        upkeep = self._said("pull")["dashboard"]["upkeep"]
        if any(one["state"] == "pulling" for one in upkeep["pulls"]):
            return {"fault": "A pull is under way."}
        upkeep["pulls"] += [
            {"node": node, "model": model, "state": "waiting", "percent": 0, "fault": ""} for node in nodes
        ]
        return {"fault": "", **self._tell(upkeep)}

    async def stop_pull(self) -> Any:
        upkeep = self._said("stop_pull")["dashboard"]["upkeep"]
        upkeep["pulls"] = [one | {"state": "stopped"} for one in upkeep["pulls"]]
        return {"fault": "", **self._tell(upkeep)}

    def _tell(self, upkeep: Any) -> Any:
        """Say so from now on."""
        script = Path(self.valves.script)
        said = json.loads(script.read_text())
        said["dashboard"]["upkeep"] = upkeep
        script.write_text(json.dumps(said))
        return upkeep

    def _said(self, method: str) -> dict[str, Any]:
        with Path(self.valves.script).with_suffix(".asked").open("a") as asked:
            asked.write(f"{method}\n")
        said: dict[str, Any] = json.loads(Path(self.valves.script).read_text())
        if method in said["failing"]:
            raise RuntimeError("the script says so")
        return said
