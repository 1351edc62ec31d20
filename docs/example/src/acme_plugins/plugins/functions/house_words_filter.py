"""
title: House words
author: Acme
description: Puts answers into the words that the house uses.
license: MIT
required_open_webui_version: 0.11.2
version: {version}
"""

from typing import Any

from pydantic import BaseModel, Field

from acme_plugins.house_words import in_house_words


class Filter:
    """Changes the answer when it is complete."""

    class Valves(BaseModel):
        enabled: bool = Field(default=True, description="Change answers.")

    def __init__(self) -> None:
        self.valves = self.Valves()

    async def outlet(self, body: dict[str, Any]) -> dict[str, Any]:
        """Put the last message into the house's words."""
        if self.valves.enabled:
            body["messages"][-1]["content"] = in_house_words(body["messages"][-1]["content"])
        return body
