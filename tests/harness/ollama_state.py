"""What a scripted node holds: installed models, models in memory, and the answers that a test lined up."""

import json
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime

from harness.ollama_wire import (
    JSON,
    Answer,
    Loaded,
    Model,
    RefusalError,
    full_name,
    keep_alive_of,
    listed,
    resident,
    shown,
)


class NodeState:
    """The state of one node. The node's loop changes it; a test may look, install and enqueue meanwhile."""

    def __init__(self, models: Iterable[Model], *, gpu: bool) -> None:
        self.models = {model.full_name: model for model in models}
        self.answers: deque[Answer] = deque()
        self.loaded: dict[str, Loaded] = {}  # by weights blob: a runner serves a blob, not a name
        self._gpu = gpu
        self._modified_at = datetime.now(UTC)

    def tags(self) -> JSON:
        return {"models": [listed(model, self._modified_at) for model in list(self.models.values())]}

    def ps(self) -> JSON:
        now = datetime.now(UTC)
        self.loaded = {blob: loaded for blob, loaded in self.loaded.items() if loaded.expires_at > now}
        latest_first = sorted(self.loaded.values(), key=lambda loaded: loaded.expires_at, reverse=True)
        return {"models": [resident(loaded, gpu=self._gpu) for loaded in latest_first]}

    def show(self, body: JSON) -> JSON:
        name = body.get("model") or body.get("name")
        if not name:
            raise RefusalError(400, "model is required")
        return shown(self.model(name), self._modified_at)

    def model(self, name: str) -> Model:
        """Return the installed model of this name.

        Raises:
            RefusalError: 404, there is none.
        """
        try:
            return self.models[full_name(name)]
        except (KeyError, ValueError):
            raise RefusalError(404, f"model '{name}' not found") from None

    def model_to_embed(self, body: JSON) -> Model:
        if not (name := body.get("model")):
            raise RefusalError(500, "unqualified name: registry.ollama.ai/library/!MISSING!:latest")
        try:
            return self.model(name)
        except RefusalError:
            message = f"model {json.dumps(name)} not found, try pulling it first"
            raise RefusalError(404, message) from None

    def load(self, model: Model, body: JSON) -> bool:
        """Keep a model in memory for the request's ``keep_alive``; return whether it was not there before."""
        context = int((body.get("options") or {}).get("num_ctx") or model.num_ctx)
        before = self.loaded.get(model.blob)
        kept = before is not None and before.context_length == context
        name = before.model if before and kept else model
        self.loaded[model.blob] = Loaded.now(name, context, keep_alive_of(body.get("keep_alive")))
        return not kept

    def unload(self, model: Model) -> None:
        """Drop a model from memory."""
        self.loaded.pop(model.blob, None)

    def next_answer(self, prompt: str, images: int) -> Answer:
        """Return what was enqueued, else an echo of the prompt that also counts the images that were seen."""
        if self.answers:
            return self.answers.popleft()
        seen = f" ({images} images)" if images else ""
        words = f"You said: {prompt}{seen}".split(" ")
        return Answer([words[0], *(f" {word}" for word in words[1:])])
