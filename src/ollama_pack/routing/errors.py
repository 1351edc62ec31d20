"""What goes wrong with routing."""

from collections.abc import Mapping

from ollama_pack.base.messages import Message, joined, message
from ollama_pack.base.tables import TableError
from ollama_pack.engines.errors import NodeError
from ollama_pack.errors import PackError


class NodeTableError(TableError):
    """A row of the `nodes` valve cannot be used."""


class WarmTableError(TableError):
    """A row of the `warm` valve cannot be used."""


class RoutingError(PackError):
    """A request cannot be given to any node."""


class NoNodeError(RoutingError):
    """No node has any of the models that may answer.

    Attributes:
        models: the models, the preferred one first.
        nodes: the names of all nodes.
        silent: name of each of them that does not answer → what is wrong with it.
    """

    def __init__(
        self, models: tuple[str, ...], nodes: tuple[str, ...], silent: Mapping[str, str] | None = None
    ) -> None:
        wanted, silent = _either(models), silent or {}
        faults = joined((_faulty(node, fault) for node, fault in silent.items()), message(", "))
        there = joined((node for node in nodes if node not in silent), message(", "))
        if there and faults:
            said = message(
                "no node has {wanted}: pull it on one of {there}; no answer from {faults}",
                wanted=wanted,
                there=there,
                faults=faults,
            )
        elif there:
            said = message("no node has {wanted}: pull it on one of {there}", wanted=wanted, there=there)
        elif faults:
            said = message("no node answers that may have {wanted}: {faults}", wanted=wanted, faults=faults)
        else:
            said = message("no node answers that may have {wanted}: no node is configured", wanted=wanted)
        super().__init__(said)
        self.models = models
        self.nodes = nodes
        self.silent = dict(silent)


class QueueFullError(RoutingError):
    """Too many requests wait already.

    Attributes:
        limit: how many may wait.
        waiting: how many do.
        own: how many of them are this user's.
    """

    def __init__(self, limit: int, waiting: int, own: int) -> None:
        if own:
            said = message(
                "all nodes are busy and {waiting} requests wait, {own} of them yours (the limit is {limit}): "
                "try again in a minute",
                waiting=waiting,
                own=own,
                limit=limit,
            )
        else:
            said = message(
                "all nodes are busy and {waiting} requests wait (the limit is {limit}): try again in a "
                "minute",
                waiting=waiting,
                limit=limit,
            )
        super().__init__(said)
        self.limit = limit
        self.waiting = waiting
        self.own = own


class NodesDownError(RoutingError):
    """Nodes have the model, and none of them answers."""

    def __init__(self, models: tuple[str, ...], nodes: Mapping[str, str]) -> None:
        """Say which nodes there are.

        Args:
            models: the models that may answer.
            nodes: name of each node that has one → what is wrong with it.
        """
        reasons = joined((_faulty(node, reason) for node, reason in nodes.items()), message(", "))
        super().__init__(
            message(
                "no node that has {wanted} answers at the moment: {reasons}; try again in a minute",
                wanted=_either(models),
                reasons=reasons,
            )
        )
        self.models = models
        self.nodes = dict(nodes)


class WaitedTooLongError(RoutingError):
    """No node became free in time.

    Attributes:
        seconds: the limit.
        waiting: how many requests wait.
    """

    def __init__(self, seconds: float, waiting: int) -> None:
        super().__init__(
            message(
                "all nodes were busy for {seconds:g} s and {waiting} requests wait: try again later, or let "
                "an admin add a node or raise first_token_timeout_seconds",
                seconds=seconds,
                waiting=waiting,
            )
        )
        self.seconds = seconds
        self.waiting = waiting


class NoAnswerError(RoutingError):
    """Every node that was tried failed before its first token.

    Attributes:
        failures: name of each → what went wrong.
    """

    def __init__(self, failures: Mapping[str, NodeError]) -> None:
        each = (joined((node, failure.plain), message(": ")) for node, failure in failures.items())
        super().__init__(
            message(
                "no node could answer ({reasons}): try again, or let an admin look at these nodes",
                reasons=joined(each, message("; ")),
            )
        )
        self.failures = dict(failures)


class RequestFailsError(NoAnswerError):
    """Several nodes failed in the same way before their first token: the request is the likely reason."""

    def __init__(self, failures: Mapping[str, NodeError]) -> None:
        super().__init__(failures)
        said = message(
            "{nodes} failed in the same way ({why}): change this request, as it is the likely reason",
            nodes=joined(failures, message(" and ")),
            why=list(failures.values())[-1].plain,
        )
        self.args = (said,)


class AnswerBrokenError(RoutingError):
    """A node failed in the middle of its answer. Another node's words are never put behind it.

    Attributes:
        node: its name.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(
            message(
                "{node} failed in the middle of this answer ({reason}): it is incomplete, regenerate it and "
                "another node answers",
                node=node,
                reason=reason,
            )
        )
        self.node = node


def _either(models: tuple[str, ...]) -> Message:
    return joined((f"'{model}'" for model in models), message(" or "))


def _faulty(node: str, fault: str) -> Message:
    return message("{node} ({fault})", node=node, fault=fault) if fault else Message(node)
