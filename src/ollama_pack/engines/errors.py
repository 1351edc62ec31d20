"""What goes wrong with a node."""

from typing import Literal

from ollama_pack.base.messages import Message, message
from ollama_pack.errors import PackError


class ChatBodyError(PackError, ValueError):
    """A chat body holds what cannot be put into the node's form.

    Attributes:
        field: where it stands, such as `messages[2].content[0].image_url`.
        reason: what is wrong with it and what to do. Never text of the conversation.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(message("{field} {reason}", field=field, reason=reason))
        self.field = field
        self.reason = reason


class NodeError(PackError):
    """A node did not do what it was asked.

    Attributes:
        node: its address, without user name, password and query.
        reason: what it did not do.
        status: the HTTP status of its answer; None where there was none, or where the answer had begun.
        said: the node's own message, shortened; empty where it gave none.
        is_down: it is the node, not one model on it: there is no connection.
    """

    is_down = False

    def __init__(self, node: str, reason: str, *, status: int | None = None, said: str = "") -> None:
        super().__init__()
        self.node = node
        self.reason = reason
        self.status = status
        self.said = said

    @property
    def message(self) -> Message:
        """What went wrong, with the node's address."""
        return message("node {node} {reason}", node=self.node, reason=self.plain_with_said)

    def __str__(self) -> str:
        return str(self.message)

    @property
    def plain_with_said(self) -> Message:
        """The reason, and what the node itself said."""
        if not self.said:
            return self.reason if isinstance(self.reason, Message) else Message(self.reason)
        return message("{reason}: {said}", reason=self.reason, said=self.said)

    @property
    def plain(self) -> Message:
        """What went wrong, for people who are not to see addresses."""
        return self.plain_with_said


class RetryableNodeError(NodeError):
    """Another node may do what this one did not: nothing is wrong with the request."""


class NodeUnreachableError(RetryableNodeError):
    """No connection came about, so the node has not seen the request."""

    is_down = True

    def __init__(self, node: str, said: str) -> None:
        reason = message("cannot be reached (does it run, is the address right?)")
        super().__init__(node, reason, said=said)

    @property
    def plain(self) -> Message:
        """What went wrong; the system's own message has the address in it."""
        return self.reason if isinstance(self.reason, Message) else Message(self.reason)


class NodeCertificateError(NodeUnreachableError):
    """The node is there, but no TLS came about: its certificate is not trusted, or it speaks no TLS."""

    def __init__(self, node: str, said: str) -> None:
        super().__init__(node, said)
        self.reason = message(
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
        if stage == "connect":
            reason = message("has not connected within {seconds:g} s", seconds=seconds)
        elif stage == "load":
            reason = message("has not loaded the model within {seconds:g} s", seconds=seconds)
        elif stage == "first byte":
            reason = message("has not sent its first byte within {seconds:g} s", seconds=seconds)
        elif stage == "next line":
            reason = message("has not sent its next line within {seconds:g} s", seconds=seconds)
        else:
            reason = message("has not sent its answer within {seconds:g} s", seconds=seconds)
        super().__init__(node, reason)
        self.stage = stage
        self.seconds = seconds
        self.is_down = stage == "connect"


class NodeBusyError(RetryableNodeError):
    """The node takes no more requests at the moment.

    Attributes:
        retry_after: seconds after which it may, as its answer says; None: it does not.
    """

    def __init__(self, node: str, status: int, said: str, retry_after: float | None = None) -> None:
        super().__init__(node, message("is busy (status {status})", status=status), status=status, said=said)
        self.retry_after = retry_after


class NodeFaultError(RetryableNodeError):
    """The node failed, sent what is no answer, or hung up."""


class NodeGoneError(RetryableNodeError):
    """The node has stopped answering at all while a request was there."""

    def __init__(self, node: str) -> None:
        super().__init__(node, message("has stopped answering"))


class WrongModelError(RetryableNodeError):
    """The node answers with another model than it was asked for.

    Attributes:
        answered: the name in its answer.
    """

    def __init__(self, node: str, asked: str, answered: str) -> None:
        reason = message(
            "answers with {answered!r} though it was asked for {asked!r}", answered=answered, asked=asked
        )
        super().__init__(node, reason)
        self.answered = answered


class ModelNotFoundError(RetryableNodeError):
    """The node does not have the model.

    Attributes:
        model: the name that was asked for.
    """

    def __init__(self, node: str, model: str, said: str, remedy: str = "") -> None:
        remedy = remedy or message("run 'ollama pull {model}' there", model=model)
        reason = message("has no {model!r} ({remedy})", model=model, remedy=remedy)
        super().__init__(node, reason, status=404, said=said)
        self.model = model


class RequestRefusedError(NodeError):
    """The node will not take this request, and no other node would: the request has to change."""

    def __init__(self, node: str, status: int | None, said: str) -> None:
        reason = message("refuses the request")
        if status and not said:
            reason = message("refuses the request (status {status})", status=status)
        super().__init__(node, reason, status=status, said=said)
