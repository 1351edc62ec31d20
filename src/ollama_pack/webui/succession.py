"""Which instance of a function runs here: Open WebUI tells none that other code of it is used from now on."""

from typing import Any, Protocol

RUNNING = "OLLAMA_PACK_RUNNING"  # on `app.state`: function id → the instance, also of older code


class Retiring(Protocol):
    """A function that holds connections, threads or files."""

    def retire(self) -> None:
        """Give them back, once what is under way has ended."""


def take_over(app: Any, function_id: str, instance: Retiring) -> None:
    """Be the one that runs in this process, and have the one before give back what it holds.

    Args:
        app: Open WebUI's.
        function_id: the function's id, as the admin saved it.
        instance: is asked to retire in its turn.
    """
    if not hasattr(app.state, RUNNING):
        setattr(app.state, RUNNING, {})
    running: dict[str, Any] = getattr(app.state, RUNNING)
    before = running.get(function_id)
    if before is not instance:
        running[function_id] = instance
        if before is not None:
            before.retire()
