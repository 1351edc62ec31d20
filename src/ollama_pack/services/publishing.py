"""Publishing: what the router and the alias tables offer becomes models that users see and may use."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.services.offer import (
    AliasTables,
    Offer,
    absent_routed,
    answers_of,
    closed_to_audience,
    filtered_rows,
    gather_offer,
    opened_by_aliases,
    routed_rows,
    shown_though_gone,
    withdrawable,
)
from ollama_pack.webui.audience import audience_grants, stated_audience
from ollama_pack.webui.contact import RouterContact
from ollama_pack.webui.model_rows import ExistingRow
from ollama_pack.webui.models import ModelCatalogue
from ollama_pack.webui.publication import (
    Absences,
    CloseRow,
    DeleteRow,
    LeftRow,
    WantedRow,
    plan_rows,
)
from ollama_pack.webui.rows import group_ids, listed_models, read_rows, refresh_models, write_rows

log = logging.getLogger(__name__)

GRACE_SECONDS = 900.0  # a node that restarts, or loads its driver anew, is back sooner
NO_TABLES = AliasTables(None, None, frozenset(), are_known=False)


@dataclass(frozen=True, slots=True)
class Publication:
    """How the last look ended, for the dashboard.

    Attributes:
        looked_at: Unix time of the look; None: there was none yet.
        rows: what is published now.
        left: rows that are left alone, and why.
        problems: what an admin should know, in sentences.
    """

    looked_at: float | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    left: tuple[LeftRow, ...] = ()
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class Publisher:
    """Keeps the rows as they should be. Looks as often as it is told to; writes only what differs."""

    def __init__(self, app: Any, router: RouterContact, clock: Callable[[], float] = time.monotonic) -> None:
        """Look at nothing yet.

        Args:
            app: Open WebUI's.
            router: what is published.
            clock: seconds, for how long a model is missing.
        """
        self.last = Publication()
        self._app = app
        self._router = router
        self._absences = Absences(GRACE_SECONDS, clock)
        self._refreshed_for: frozenset[str] = frozenset()
        self._group_names: dict[str, str] = {}
        self._opens: dict[str, tuple[str, ...]] = {}

    async def reconcile(self, audience: str, owner: str, *, publish: bool) -> None:
        """Bring the rows to what is offered now.

        Args:
            audience: who may use the aliases, as the valve has it.
            owner: id of the user whose the new rows are.
            publish: False takes away what was published.
        """
        offer = await gather_offer(self._router) if publish else Offer(NO_TABLES)
        if not self._app.state.MODELS:
            await refresh_models(self._app)
        rows = await read_rows()
        wanted, problems = await self._wanted(offer, audience, rows)
        spared = self._spared(offer, wanted, rows) if publish else frozenset()
        plan = plan_rows(wanted, rows, self._by_themselves().keys(), spared)
        done = await write_rows(plan.changes, owner)
        for change in done:
            if isinstance(change, DeleteRow | CloseRow):
                self._absences.withdrawn(change.id)
        rows = await read_rows() if done else rows
        await self._show_to_users(offer, rows, changed=bool(done))
        ours = sorted((row for row in rows.values() if row.maker != "hand"), key=lambda row: row.id)
        answers = answers_of(offer)
        published = tuple(self._shown(row, answers) for row in ours)
        self._conclude(Publication(time.time(), published, plan.left, problems))

    async def _wanted(
        self, offer: Offer, audience: str, rows: Mapping[str, ExistingRow]
    ) -> tuple[dict[str, WantedRow], tuple[str, ...]]:
        """The rows that there shall be, by id, and what stands in the way of more."""
        groups = await group_ids()
        self._group_names = {group: name for name, group in groups.items()}
        parts = stated_audience(audience)
        stated, unknown = (None, ()) if parts is None else audience_grants(parts, groups)
        models = ModelCatalogue(self._by_themselves())
        filtered, lacking = filtered_rows(offer, stated, models, rows, groups)
        opened = {row.id: row for row in filtered if row.id in offer.router_ids}
        routed = (_opened_too(row, opened.get(row.id)) for row in routed_rows(offer, stated, rows))
        self._opens = opened_by_aliases(offer, stated, rows)
        missing_groups = (
            message("audience: Open WebUI has no group {name!r}: create it, or correct the valve", name=name)
            for name in unknown
        )
        fault = (
            [message("{fault}. What is published through it stays.", fault=offer.fault)]
            if offer.fault
            else []
        )
        closed = closed_to_audience(offer, stated, rows)
        problems = (*fault, *missing_groups, *absent_routed(offer), *lacking, *closed)
        return {row.id: row for row in (*filtered, *routed)}, problems

    def _by_themselves(self) -> dict[str, Mapping[str, Any]]:
        """The models that are there without a row."""
        models = listed_models(self._app).items()
        return {model: about for model, about in models if not about.get("preset")}

    def _spared(
        self, offer: Offer, wanted: Mapping[str, WantedRow], rows: Mapping[str, ExistingRow]
    ) -> frozenset[str]:
        """Rows of ours that stay for now, though they are not wanted."""
        away, gone = withdrawable(offer, wanted, rows, self._by_themselves().keys())
        ours = frozenset(row.id for row in rows.values() if row.maker == "events")
        return (ours - away - gone) | self._absences.spared(away, wanted.keys())

    def _shown(self, row: ExistingRow, answers: Mapping[str, list[str]]) -> dict[str, Any]:
        """A row as the dashboard shows it.

        Args:
            row: ours, or one that upload.py made.
            answers: alias → the models that answer for it now, the preferred one first.
        """
        return {
            "id": row.id,
            "base": row.base,
            "alias": row.alias,
            "made_by": row.maker,
            "answers": answers.get(row.alias or row.id.removeprefix(ROUTER), []),
            "active": row.active,
            "audience": sorted(self._readable(kind, who) for kind, who, _ in row.grants),
            "opens": list(self._opens.get(row.alias, ())),
            "missing_seconds": self._absences.seconds(row.id),
        }

    def _readable(self, kind: str, who: str) -> str:
        return "everybody" if who == "*" else f"{kind} {self._group_names.get(who, who)}"

    async def _show_to_users(self, offer: Offer, rows: Mapping[str, ExistingRow], *, changed: bool) -> None:
        """Have Open WebUI look again where its list differs from what there is; once for one difference."""
        differs = shown_though_gone(listed_models(self._app), rows, offer)
        if changed or not differs <= self._refreshed_for:
            await refresh_models(self._app)
        self._refreshed_for = differs

    def _conclude(self, publication: Publication) -> None:
        for problem in publication.problems:
            if problem not in self.last.problems:
                log.warning("%s", problem)
        self.last = publication


def _opened_too(row: WantedRow, opened: WantedRow | None) -> WantedRow:
    """A row of the router, which an alias of the filter may open wider."""
    return row if opened is None else replace(row, grants=row.grants | opened.grants, opened=True)
