"""What a node holds: installed models, models in memory, the answers that a test lined up, and records."""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from harness.ollama_wire import JSON, Answer, Model, RefusalError, full_name, listed, shown
from harness.sim_records import NodeStats
from harness.sim_scheduler import Scheduler
from harness.sim_shape import NodeShape
from harness.sim_text import Draw, answer_to


class NodeState:
    """The state of one node. The node's loop changes it; a test may look, install and enqueue meanwhile."""

    def __init__(self, models: Iterable[Model], shape: NodeShape, *, gpu: bool) -> None:
        self.models = {model.full_name: model for model in models}
        self.answers: deque[Answer] = deque()
        self.shape = shape
        self.stats = NodeStats()
        self.scheduler = Scheduler(shape)
        self.registry: dict[str, Model] = {}  # what can be pulled
        self.pull_pieces = 3
        self.busy_while_pulling = 0  # the most chats at one moment of a pull
        self._gpu = gpu
        self._modified_at = datetime.now(UTC)

    def restart(self) -> None:
        """Begin with nothing in memory. What was there must have been closed."""
        self.scheduler = Scheduler(self.shape)

    def tags(self) -> JSON:
        return {"models": [listed(model, self._modified_at) for model in list(self.models.values())]}

    def ps(self) -> JSON:
        return self.scheduler.ps(gpu=self._gpu)

    def show(self, body: JSON) -> JSON:
        name = body.get("model") or body.get("name")
        if not name:
            raise RefusalError(400, "model is required")
        return shown(self.model(name), self._modified_at)

    def copy(self, body: JSON) -> None:
        """Give a model a second name.

        Raises:
            RefusalError: 400 for what is no name, 404 for a model that is not installed.
        """
        source, target = body.get("source") or "", body.get("destination") or ""
        for field, name in (("source", source), ("destination", target)):
            try:
                full_name(name)
            except ValueError:
                raise RefusalError(400, f"{field} {json.dumps(name)} is invalid") from None
        try:
            model = self.models[full_name(source)]
        except KeyError:
            raise RefusalError(404, f"model {json.dumps(source)} not found") from None
        self.models[full_name(target)] = replace(model, name=target)

    def delete(self, body: JSON) -> None:
        """Uninstall a model; a runner of it goes on.

        Raises:
            RefusalError: 404, there is none.
        """
        del self.models[self.model(body.get("model") or body.get("name") or "").full_name]

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

    def next_answer(self, model: Model, body: JSON, prompt: str, question: str, images: int) -> Answer:
        """Return what was enqueued, else what the node makes up.

        Args:
            model: that is asked.
            body: the request.
            prompt: all of it, rendered.
            question: the last message of the user.
            images: those that the model sees, which an echo counts.
        """
        if self.answers:
            return self.answers.popleft()
        if self.shape.echo:
            seen = f" ({images} images)" if images else ""
            words = f"You said: {question}{seen}".split(" ")
            return Answer([words[0], *(f" {word}" for word in words[1:])], pause=None)
        seed = (body.get("options") or {}).get("seed")
        median = model.answer_tokens or self.shape.answer_tokens
        draw = Draw(median, self.shape.answer_spread, self.shape.seed, seed, model.blob, prompt)
        return Answer(answer_to(question, draw), pause=None)
