"""What goes wrong with aliases."""

from ollama_pack.base.messages import Message, joined, message
from ollama_pack.base.tables import TableError
from ollama_pack.errors import PackError

NOT_INSTALLED = "is not installed"
NOT_PERMITTED = "is not granted to this user"
NOT_ANSWERING = "does not answer"


def why_not(model: str, reason: str) -> Message:
    """Why a model that the table prefers does not answer: `mixtral:8x7b is not installed`."""
    if reason == NOT_INSTALLED:
        return message("{model} is not installed", model=model)
    if reason == NOT_PERMITTED:
        return message("you may not use {model}", model=model)
    return message("no node can answer with {model} now", model=model)


class AliasTableError(TableError):
    """A row of an alias table cannot be used."""


class AliasUnavailableError(PackError):
    """An alias matched, but none of its models can answer this user.

    Attributes:
        alias: the name that was asked for.
        passed_over: each model that was considered, with the reason against it.
    """

    def __init__(self, alias: str, passed_over: tuple[tuple[str, str], ...]) -> None:
        super().__init__(
            message(
                "No model behind the alias {alias!r} can answer: {reasons}. An admin can install one (ollama "
                "pull {first}), grant access to it, or change the alias.",
                alias=alias,
                reasons=joined((why_not(model, reason) for model, reason in passed_over), message(", ")),
                first=passed_over[0][0],
            )
        )
        self.alias = alias
        self.passed_over = passed_over
