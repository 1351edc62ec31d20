"""What goes wrong with budgets."""

from ollama_pack.base.messages import message
from ollama_pack.errors import PackError


class BudgetTableError(PackError, ValueError):
    """A row of the budget table cannot be used.

    A `ValueError` too, so that a pydantic validator reports it when an admin saves the valve.

    Attributes:
        line: number of the row in the text, from 1.
        row: the row as it was written.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, line: int, row: str, reason: str) -> None:
        super().__init__(message("row {line} ({row!r}): {reason}", line=line, row=row, reason=reason))
        self.line = line
        self.row = row
        self.reason = reason


class BudgetStoreError(PackError):
    """The store of the budgets did not do what it was asked."""


class BudgetSpentError(PackError):
    """A chat is not answered, as its user has used up a budget. The message is for the user."""
