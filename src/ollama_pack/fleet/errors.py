"""What goes wrong with routing: see the tree in `ollama_pack.errors`."""

from ollama_pack.errors import PackError


class NodeTableError(PackError, ValueError):
    """A row of the `nodes` valve cannot be used. A `ValueError` too, as `AliasTableError` is.

    Attributes:
        line: number of the row in the text, from 1.
        row: the row as it was written, but for its key.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, line: int, row: str, reason: str) -> None:
        super().__init__(f"row {line} ({row!r}): {reason}")
        self.line = line
        self.row = row
        self.reason = reason


class RoutingError(PackError):
    """A request cannot be given to any node."""


class NoNodeError(RoutingError):
    """No node has any of the models that may answer.

    Attributes:
        models: the models, the preferred one first.
        nodes: the names of all nodes.
    """

    def __init__(self, models: tuple[str, ...], nodes: tuple[str, ...]) -> None:
        wanted = " or ".join(f"`{model}`" for model in models)
        where = f"pull it on one of {', '.join(nodes)}" if nodes else "no node is configured"
        super().__init__(f"no node has {wanted}: {where}")
        self.models = models
        self.nodes = nodes


class QueueFullError(RoutingError):
    """Too many requests wait already.

    Attributes:
        limit: how many may wait.
        waiting: how many do.
        own: how many of them are this user's.
    """

    def __init__(self, limit: int, waiting: int, own: int) -> None:
        yours = f", {own} of them yours" if own else ""
        super().__init__(
            f"all nodes are busy and {waiting} requests wait{yours} (the limit is {limit}): "
            "try again in a minute"
        )
        self.limit = limit
        self.waiting = waiting
        self.own = own
