"""Every error that the pack raises on purpose.

PackError
├── AliasTableError             a row of an alias table cannot be used
├── AliasUnavailableError       an alias matched, but none of its models can answer this user
├── ChatBodyError               a chat body holds what cannot be put into Ollama's form
├── NodeTableError              a row of the `nodes` valve cannot be used
├── RoutingError                a request cannot be given to a node
│   ├── NoNodeError                 none has the model
│   └── QueueFullError              too many wait already
└── NodeError                   a node did not do what it was asked
    ├── RetryableNodeError          another node may do it
    │   ├── NodeUnreachableError        no connection
    │   ├── NodeTimeoutError            a limit ran out
    │   ├── NodeBusyError               its queue is full
    │   ├── NodeFaultError              it failed, talked garbage or hung up
    │   └── ModelNotFoundError          it does not have the model
    └── RequestRefusedError         it will not take this request, and no other node would
"""

from typing import Literal


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


class AliasTableError(PackError, ValueError):
    """A row of an alias table cannot be used.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        line: number of the row in the text, from 1.
        row: the row as it was written.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, line: int, row: str, reason: str) -> None:
        super().__init__(f"row {line} ({row!r}): {reason}")
        self.line = line
        self.row = row
        self.reason = reason


class AliasUnavailableError(PackError):
    """An alias matched, but none of its models can answer this user.

    Attributes:
        alias: the name that was asked for.
        passed_over: each model that was considered, with the reason against it.
    """

    def __init__(self, alias: str, passed_over: tuple[tuple[str, str], ...]) -> None:
        reasons = ", ".join(f"{model} {reason}" for model, reason in passed_over)
        super().__init__(
            f"No model behind the alias {alias!r} can answer: {reasons}. "
            f"An admin can install one (`ollama pull {passed_over[0][0]}`), grant access to it, "
            "or change the alias."
        )
        self.alias = alias
        self.passed_over = passed_over


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


class ChatBodyError(PackError, ValueError):
    """A chat body holds what cannot be put into Ollama's form.

    Attributes:
        field: where it stands, such as `messages[2].content[0].image_url`.
        reason: what is wrong with it and what to do. Never text of the conversation.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


class NodeError(PackError):
    """A node did not do what it was asked.

    Attributes:
        node: its address, without user name, password and query.
        status: the HTTP status of its answer; None where there was none, or where the answer had begun.
        said: the node's own message, shortened; empty where it gave none.
    """

    def __init__(self, node: str, reason: str, *, status: int | None = None, said: str = "") -> None:
        super().__init__(f"node {node} {reason}" + (f": {said}" if said else ""))
        self.node = node
        self.status = status
        self.said = said


class RetryableNodeError(NodeError):
    """Another node may do what this one did not: nothing is wrong with the request."""


class NodeUnreachableError(RetryableNodeError):
    """No connection came about, so the node has not seen the request."""

    def __init__(self, node: str, said: str) -> None:
        super().__init__(node, "cannot be reached (does Ollama run there, is the address right?)", said=said)


class NodeTimeoutError(RetryableNodeError):
    """A limit ran out.

    Attributes:
        stage: what was waited for.
        seconds: the limit.
    """

    def __init__(
        self, node: str, stage: Literal["connect", "first byte", "next line", "answer"], seconds: float
    ) -> None:
        waited = "connected" if stage == "connect" else f"sent its {stage}"
        super().__init__(node, f"has not {waited} within {seconds:g} s")
        self.stage = stage
        self.seconds = seconds


class NodeBusyError(RetryableNodeError):
    """The node takes no more requests at the moment."""

    def __init__(self, node: str, status: int, said: str) -> None:
        super().__init__(node, f"is busy (status {status})", status=status, said=said)


class NodeFaultError(RetryableNodeError):
    """The node failed, sent what is not Ollama's, or hung up."""


class ModelNotFoundError(RetryableNodeError):
    """The node does not have the model.

    Attributes:
        model: the name that was asked for.
    """

    def __init__(self, node: str, model: str, said: str) -> None:
        super().__init__(node, f"has no {model!r} (`ollama pull {model}` there)", status=404, said=said)
        self.model = model


class RequestRefusedError(NodeError):
    """The node will not take this request, and no other node would: the request has to change."""

    def __init__(self, node: str, status: int | None, said: str) -> None:
        super().__init__(node, "refuses the request", status=status, said=said)
