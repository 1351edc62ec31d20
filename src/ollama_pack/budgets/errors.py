"""What goes wrong with budgets."""

from ollama_pack.base.tables import TableError
from ollama_pack.errors import PackError


class BudgetTableError(TableError):
    """A row of the budget table cannot be used."""


class BudgetStoreError(PackError):
    """The store of the budgets did not do what it was asked."""


class BudgetSpentError(PackError):
    """A chat is not answered, as its user has used up a budget. The message is for the user."""
