"""The way to `usage_budgets`, for the router and the routes. Its answers are plain values.

Imports `open_webui` when called, not before.
"""

import csv
import io
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ollama_pack.base.single_flight import SingleFlight
from ollama_pack.engines.refusals import Refusal
from ollama_pack.webui.calling import UNCOUNTED
from ollama_pack.webui.errors import ModelRefusedError
from ollama_pack.webui.functions import function_state, live_function

log = logging.getLogger(__name__)

BUDGETS_ID = "usage_budgets"
_LOOK_SECONDS = 2.0  # after which it is looked up again: its valves may have changed
_USERS_AT_ONCE = 500
_MOST_SHOWN = 50  # on the dashboard; the table has all
_BYTE_ORDER = "\ufeff"
NO_BUDGET: dict[str, Any] = {"ticket": "", "own": False, "last": False, "refusal": None}


class BudgetContact:
    """Asks `usage_budgets`; without it, or when it fails, there are no budgets."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        self._app: Any = None
        self._live = SingleFlight(self._look, _LOOK_SECONDS, ahead=True)

    async def live(self, app: Any) -> Any:
        """The function as it runs in this process; None: it is not installed, off, or has no table."""
        self._app = app
        try:
            found = await self._live.get()
        except Exception:
            log.exception("usage_budgets cannot be asked, and no budgets hold")
            return None
        return found if found is not None and found.valves.budgets else None

    async def begin(
        self, app: Any, user: dict[str, Any], metadata: dict[str, Any], model: str, *, always: bool
    ) -> tuple[Any, dict[str, Any]]:
        """Begin to count an answer: the function, and what its `budget_begin` says."""
        budgets = None if metadata.get(UNCOUNTED) else await self.live(app)
        if budgets is None:
            return None, NO_BUDGET
        try:
            return budgets, await budgets.budget_begin(user, metadata, model, always=always)
        except Exception:
            log.exception("An answer is not counted, and no budgets hold for it")
            return None, NO_BUDGET

    @asynccontextmanager
    async def counting(
        self,
        app: Any,
        user: dict[str, Any],
        metadata: dict[str, Any],
        model: str,
        *,
        always: bool = False,
    ) -> AsyncGenerator[tuple[Callable[[float, float], None] | None, bool]]:
        """Count an answer: what to tell its seconds of GPU time and its tokens, and whether it comes last.

        Where no budget holds there is nobody to tell. Without figures nothing was made, and nothing counts.

        Raises:
            ModelRefusedError: the budget is used up.
        """
        budgets, begun = await self.begin(app, user, metadata, model, always=always)
        if begun["refusal"]:
            raise ModelRefusedError(Refusal(**begun["refusal"]))
        try:
            yield partial(budgets.budget_note, begun["ticket"]) if begun["ticket"] else None, begun["last"]
        finally:
            if begun["own"]:
                budgets.budget_end(begun["ticket"])

    def forget(self) -> None:
        """It may have been switched, or have other valves."""
        self._live.forget()

    async def usage(self, app: Any, user: dict[str, Any]) -> dict[str, Any]:
        """The budgets of a user, as `budget_usage` says; users are named by their e-mail addresses."""
        budgets = await self.live(app)
        if budgets is None:
            return {"budgets": [], "fault": ""}
        found: dict[str, Any] = await budgets.budget_usage(user)
        ids = [entry["whose"] for entry in found.get("all") or () if not entry["shared"]]
        names = await _addresses(ids) if ids else {}
        for entry in found.get("all") or ():
            entry["whose"] = names.get(entry["whose"], entry["whose"])
        return found

    async def report(self, app: Any) -> dict[str, Any]:
        """What is counted, for the dashboard: those who have used most. Empty: there are no budgets."""
        if await self.live(app) is None:
            return {}
        found = await self.usage(app, {"role": "admin"})
        entries = sorted(found.get("all") or (), key=lambda entry: (not entry["shared"], -entry["used"]))
        told = {"fault": found["fault"], "problems": found.get("problems") or []}
        return {**told, "count": len(entries), "most": entries[:_MOST_SHOWN]}

    async def _look(self) -> Any:
        state = await function_state(BUDGETS_ID)
        return await live_function(self._app, BUDGETS_ID, state) if state.active else None


async def _addresses(ids: list[str]) -> dict[str, str]:
    """The e-mail address of each user; a user who was deleted has none."""
    from open_webui.models.users import Users  # noqa: PLC0415 - see the top of this module

    parts = [ids[at : at + _USERS_AT_ONCE] for at in range(0, len(ids), _USERS_AT_ONCE)]
    return {user.id: user.email for part in parts for user in await Users.get_users_by_user_ids(part)}


def usage_table(entries: Iterable[Mapping[str, Any]]) -> str:
    """What `budget_usage` says of all, as CSV. A spreadsheet takes no cell of it for a formula.

    It begins with a byte order mark: without one Excel takes the names of groups for another encoding.
    """
    written = io.StringIO()
    written.write(_BYTE_ORDER)
    columns = ("whose", "shared", "unit", "period", "used", "under_way")
    table = csv.writer(written)
    table.writerow(columns)
    for entry in entries:
        cells = [str(entry[column]) for column in columns]
        table.writerow(
            [f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t")) else cell for cell in cells]
        )
    return written.getvalue()
