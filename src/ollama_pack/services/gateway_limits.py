"""Budgets as the rate-limit headers that OpenAI's and Anthropic's clients read."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from ollama_pack.engines.refusals import ApiForm

_UNITS = ("requests", "tokens")  # GPU time has no header


def limit_headers(budgets: Iterable[Mapping[str, Any]], api: ApiForm, now: datetime) -> dict[str, str]:
    """The headers for what is left; of several budgets in one unit, of which the least is left.

    Args:
        budgets: as the filter of budgets reports them.
        api: the client's; Ollama's has no such headers.
        now: with a time zone.
    """
    if api == "ollama":
        return {}
    headers: dict[str, str] = {}
    told = list(budgets)
    for unit in _UNITS:
        of_unit = [budget for budget in told if budget.get("unit") == unit]
        if of_unit:
            headers |= _of_budget(min(of_unit, key=lambda budget: float(budget["left"])), unit, api, now)
    return headers


def _of_budget(budget: Mapping[str, Any], unit: str, api: ApiForm, now: datetime) -> dict[str, str]:
    limit, left = str(int(budget["amount"])), str(max(0, int(budget["left"])))
    ends = datetime.fromisoformat(str(budget["ends"]))
    if api == "anthropic":
        name = f"anthropic-ratelimit-{unit}"
        return {f"{name}-limit": limit, f"{name}-remaining": left, f"{name}-reset": ends.isoformat()}
    seconds = max(0, round((ends - now).total_seconds()))
    return {
        f"x-ratelimit-limit-{unit}": limit,
        f"x-ratelimit-remaining-{unit}": left,
        f"x-ratelimit-reset-{unit}": f"{seconds}s",
    }
