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

    def _said(self, method: str) -> dict[str, Any]:
        with Path(self.valves.script).with_suffix(".asked").open("a") as asked:
            asked.write(f"{method}\n")
        said: dict[str, Any] = json.loads(Path(self.valves.script).read_text())
        if method in said["failing"]:
            raise RuntimeError("the script says so")
        return said
