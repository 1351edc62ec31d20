"""An Ollama that is told what to do: a real HTTP server on this machine, in a thread with a loop of its own.

Scripted, for a test of what is sent and answered; all of it happens at once:

    with OllamaNode([Model("smollm2:135m")]) as node:
        node.enqueue(Answer(["Hel", "lo"]))
        requests.post(f"{node.url}/api/chat", json=...)
        assert node.requests[-1].body["model"] == "smollm2:135m"

With nothing enqueued it echoes: "You said: ...". Simulated, for what depends on time and memory:

    with OllamaNode([Model("llama3:8b", size=4_700_000_000)], shape=NodeShape(slots=2, speed=10)) as node:
        node.command(Fault("crash", times=1, after=5))
        ...
        assert node.records[-1].hit_tokens > 0

``harness.ollama_server.NodeServer`` is the same in the running loop, ``harness.sim_process`` in a process.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, Self

from harness.ollama_routes import Request
from harness.ollama_server import NodeServer
from harness.ollama_wire import JSON, Answer, Model, ToolCall
from harness.sim_control import stats_of
from harness.sim_faults import Fault
from harness.sim_records import Record
from harness.sim_shape import INSTANT, NodeShape

__all__ = ["Answer", "Fault", "Model", "NodeShape", "OllamaNode", "Request", "ToolCall"]

START_SECONDS = 10.0


class OllamaNode:
    """A node with the given models installed; ``gpu`` tells whether loaded models are in its memory.

    Attributes:
        requests: what it got with a body, in order.
    """

    def __init__(
        self,
        models: Iterable[Model],
        *,
        shape: NodeShape = INSTANT,
        gpu: bool = True,
        version: str = "0.17.4",
    ) -> None:
        self._server = NodeServer(models, shape=shape, gpu=gpu, version=version)
        self.requests = self._server.requests
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def models(self) -> dict[str, Model]:
        """What is installed, by full name; a test may change it while the node runs."""
        return self._server.state.models

    @property
    def records(self) -> list[Record]:
        """How the requests that took a model's time went, oldest first."""
        return list(self._server.state.stats.records)

    @property
    def stats(self) -> JSON:
        """Totals, and what is in memory and at work now."""
        return stats_of(self._server.state)

    def offer(self, *models: Model, pieces: int = 3) -> None:
        """Let these models be pulled, in so many pieces."""
        self._server.state.registry |= {model.name: model for model in models}
        self._server.state.pull_pieces = pieces

    @property
    def busy_while_pulling(self) -> int:
        """The most chats that were at work at one moment of a pull."""
        return self._server.state.busy_while_pulling

    def enqueue(self, *answers: Answer) -> None:
        """Set what the next chat or generate requests get, one answer each."""
        self._server.state.answers.extend(answers)

    def command(self, *faults: Fault) -> None:
        """Put faults in force, behind those that are."""
        self._call(self._server.command(*faults))

    def clear_faults(self) -> None:
        """Let all be well again."""
        self._call(self._server.clear_faults())

    def __enter__(self) -> Self:
        """Start the node."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the node."""
        self.stop()

    def start(self) -> None:
        """Serve; after ``stop`` or ``kill`` on the same port as before, with nothing loaded.

        Raises:
            OSError: the port was taken after ``stop``.
        """
        if self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="ollama-node", daemon=True)
            self._thread.start()
        try:
            self._call(self._server.start())
        except BaseException:
            self._end_loop()
            raise

    def kill(self) -> None:
        """Cut all connections and stop listening, as a node that is switched off. Its port stays taken."""
        self._call(self._server.kill())

    def stop(self) -> None:
        """Cut all connections, stop listening and end the thread; again: nothing to do."""
        if self._thread is None:
            return
        try:
            self._call(self._server.stop())
        finally:
            self._end_loop()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread:
            self._thread.join()
        self._thread = None
        self._loop.close()
