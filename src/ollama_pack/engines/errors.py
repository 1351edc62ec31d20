"""What goes wrong with a node."""

from typing import Literal

from ollama_pack.base.messages import message
from ollama_pack.errors import PackError


class ChatBodyError(PackError, ValueError):
    """A chat body holds what cannot be put into the node's form.

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
        reason: what it did not do.
        status: the HTTP status of its answer; None where there was none, or where the answer had begun.
        said: the node's own message, shortened; empty where it gave none.
    """

    def __init__(self, node: str, reason: str, *, status: int | None = None, said: str = "") -> None:
        super().__init__()
        self.node = node
        self.reason = reason
        self.status = status
        self.said = said

    def __str__(self) -> str:
        return f"node {self.node} {self.reason}" + (f": {self.said}" if self.said else "")

    @property
    def plain(self) -> str:
        """What went wrong, for people who are not to see addresses."""
        return self.reason + (f": {self.said}" if self.said else "")


class RetryableNodeError(NodeError):
    """Another node may do what this one did not: nothing is wrong with the request."""


class NodeUnreachableError(RetryableNodeError):
    """No connection came about, so the node has not seen the request."""

    def __init__(self, node: str, said: str) -> None:
        super().__init__(node, message("cannot be reached (does it run, is the address right?)"), said=said)

    @property
    def plain(self) -> str:
        """What went wrong; the system's own message has the address in it."""
        return self.reason


class NodeCertificateError(NodeUnreachableError):
    """The node is there, but no TLS came about: its certificate is not trusted, or it speaks no TLS."""

    def __init__(self, node: str, said: str) -> None:
        super().__init__(node, said)
        self.reason = (
            "has a certificate that is not trusted, or speaks no TLS (for one that you have signed yourself "
            "set AIOHTTP_CLIENT_SSL_CERT_FILE, or SSL_CERT_FILE, to your CA where this runs)"
        )


class NodeTimeoutError(RetryableNodeError):
    """A limit ran out.

    Attributes:
        stage: what was waited for.
        seconds: the limit.
    """

    def __init__(
        self,
        node: str,
        stage: Literal["connect", "load", "first byte", "next line", "answer"],
        seconds: float,
    ) -> None:
        waited = {"connect": "connected", "load": "loaded the model"}.get(stage, f"sent its {stage}")
        super().__init__(node, f"has not {waited} within {seconds:g} s")
        self.stage = stage
        self.seconds = seconds


class NodeBusyError(RetryableNodeError):
    """The node takes no more requests at the moment."""

    def __init__(self, node: str, status: int, said: str) -> None:
        super().__init__(node, f"is busy (status {status})", status=status, said=said)


class NodeFaultError(RetryableNodeError):
    """The node failed, sent what is no answer, or hung up."""


class NodeGoneError(RetryableNodeError):
    """The node has stopped answering at all while a request was there."""

    def __init__(self, node: str) -> None:
        super().__init__(node, "has stopped answering")


class WrongModelError(RetryableNodeError):
    """The node answers with another model than it was asked for.

    Attributes:
        answered: the name in its answer.
    """

    def __init__(self, node: str, asked: str, answered: str) -> None:
        super().__init__(node, f"answers with {answered!r} though it was asked for {asked!r}")
        self.answered = answered


class ModelNotFoundError(RetryableNodeError):
    """The node does not have the model.

    Attributes:
        model: the name that was asked for.
    """

    def __init__(self, node: str, model: str, said: str, remedy: str = "") -> None:
        remedy = remedy or f"run 'ollama pull {model}' there"
        super().__init__(node, f"has no {model!r} ({remedy})", status=404, said=said)
        self.model = model


class RequestRefusedError(NodeError):
    """The node will not take this request, and no other node would: the request has to change."""

    def __init__(self, node: str, status: int | None, said: str) -> None:
        number = f" (status {status})" if status and not said else ""
        super().__init__(node, f"refuses the request{number}", status=status, said=said)
