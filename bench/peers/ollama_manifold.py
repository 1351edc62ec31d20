"""The approach of the Pipelines server's own example `ollama_manifold_pipeline`, for comparison.

One blocking request for each chat, whose lines are handed on as they come: `requests.post(stream=True)` and
`iter_lines()`. Less what it prints of each user.
"""

import os
from typing import Any

import requests
from pydantic import BaseModel


class Pipeline:
    """As the server takes it."""

    class Valves(BaseModel):
        OLLAMA_BASE_URL: str

    def __init__(self) -> None:
        self.type = "manifold"
        self.name = "Ollama: "
        self.valves = self.Valves(OLLAMA_BASE_URL=os.environ["PEER_URL"])
        self.pipelines = [{"id": os.environ["PEER_MODEL"], "name": os.environ["PEER_MODEL"]}]

    def pipe(
        self,
        user_message: str,  # noqa: ARG002 - the server passes them
        model_id: str,
        messages: list[dict[str, Any]],  # noqa: ARG002
        body: dict[str, Any],
    ) -> Any:
        try:
            answer = requests.post(  # noqa: S113 - as the example has it
                url=f"{self.valves.OLLAMA_BASE_URL}/v1/chat/completions",
                json={**body, "model": model_id},
                stream=True,
            )
            answer.raise_for_status()
            return answer.iter_lines() if body["stream"] else answer.json()
        except Exception as error:  # noqa: BLE001 - as the example has it
            return f"Error: {error}"
