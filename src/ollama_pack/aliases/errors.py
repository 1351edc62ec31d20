"""What goes wrong with aliases."""

from ollama_pack.errors import PackError


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
            f"An admin can install one (ollama pull {passed_over[0][0]}), grant access to it, "
            "or change the alias."
        )
        self.alias = alias
        self.passed_over = passed_over
