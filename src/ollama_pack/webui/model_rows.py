"""Rows of Open WebUI's models table, as they are, and the mark by which the pack knows its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.webui.audience import Grants, grants_in

MARK = "ollama_pack"  # the key in a row's meta, the uploader's too
MAKER = "ollama_pack_events"
# A row's capabilities, as upload.py sets them: Open WebUI keeps its own tools from the model.
WITHOUT_TOOLS = {"builtin_tools": False}
# The row of the response cache's own model. It has no mark: an admin decides on it once it is there.
REPLAY = "response_cache_replay"
REPLAY_NAME = "Response cache"
REPLAY_META = {"hidden": True, "description": "Gives the answers of the response cache."}
ANSWERED_BY = "→ "  # begins what the picker says under an alias, in every language
NO_PICTURE = "/static/favicon.png"  # as Open WebUI stores it, which some versions do


@dataclass(frozen=True, slots=True)
class ExistingRow:
    """A row of the models table as it is.

    Attributes:
        id: the model's id.
        name: what the picker shows.
        base: the model that answers for it, or None.
        grants: who may use it, beside admins.
        active: it is not switched off.
        meta: what else is said of it.
        has_params: an admin gave it parameters or a system prompt.
        owner: id of the user who made it, who may always use it.
    """

    id: str
    name: str
    base: str | None
    grants: Grants
    active: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)
    has_params: bool = False
    owner: str = ""

    @property
    def mark(self) -> Mapping[str, Any]:
        """The pack's mark; empty where an admin made the row, or cloned it."""
        mark = self.meta.get(MARK)
        return mark if isinstance(mark, dict) and mark.get("id") == self.id else {}

    @property
    def maker(self) -> Literal["events", "upload", "hand"]:
        """Whose row it is."""
        if not self.mark:
            return "hand"
        return "events" if self.mark.get("by") == MAKER else "upload"

    @property
    def alias(self) -> str:
        """The alias that the row serves; empty: none."""
        return str(self.mark.get("alias") or "")

    @property
    def is_alias(self) -> bool:
        """Whether the pack made it for an alias: then it is no model's own row."""
        return self.mark.get("kind") == "alias"

    @property
    def only_hides(self) -> bool:
        """Whether the pack made it to hide a model from the picker, and no admin has changed its access."""
        return self.mark.get("kind") == "hidden" and self.active and self.grants == self.given

    @property
    def given(self) -> Grants:
        """The grants that the pack gave last."""
        return grants_in(self.mark.get("grants"))

    @property
    def has_given_grants(self) -> bool:
        """Whether its grants are those that the pack gave. Version 0.1 did not note them."""
        return "grants" not in self.mark or self.grants == self.given

    @property
    def has_given_switch(self) -> bool:
        """Whether it is on or off as the pack set it."""
        return self.active == bool(self.mark.get("active", True))

    @property
    def opens(self) -> bool:
        """Whether an admin has stated who may use it, so that it opens what is behind it and has no own row.

        The admin of a row made by hand has; so has one who changed the grants of ours. `upload.py` publishes
        only what pack.yaml states.
        """
        if self.maker == "events":
            return bool(self.mark.get("opened")) or self.grants != self.given
        return bool(self.mark.get("opened", True))

    @property
    def has_additions(self) -> bool:
        """Whether an admin has put something into the row, has switched it or has changed who may use it."""
        return self.has_settings or not self.has_given_switch or not self.has_given_grants

    @property
    def has_settings(self) -> bool:
        """Whether an admin has put something of their own into the row: a name, a picture, tags."""
        ours = {MARK}
        if is_our_description(self.alias or self.id, self.meta.get("description")):
            ours.add("description")
        if self.meta.get("profile_image_url") == NO_PICTURE:
            ours.add("profile_image_url")
        if self._is_hidden_by_us:
            ours.add("hidden")
        if tag_names(self.meta.get("tags")) == tuple(self.mark.get("tags") or ()):
            ours.add("tags")
        if self.meta.get("capabilities") == WITHOUT_TOOLS:
            ours.add("capabilities")
        added = any(value for key, value in self.meta.items() if key not in ours)
        # upload.py notes no name: it takes over rows that have the router's
        names = {self.mark.get("name")} if "name" in self.mark else {self.id, self.id.removeprefix(ROUTER)}
        return added or self.name not in names or self.has_params

    @property
    def _is_hidden_by_us(self) -> bool:
        """Whether the pack keeps it out of the picker: a twin, or what the router has under an alias."""
        is_of_alias = self.maker == "upload" or bool(self.alias)
        is_under_alias = self.base is None and self.id.startswith(ROUTER) and is_of_alias
        return self.mark.get("kind") == "hidden" or is_under_alias


def existing_row(row: Mapping[str, Any]) -> ExistingRow:
    """A row, as Open WebUI's API and its own code have it."""
    meta, params = row.get("meta") or {}, row.get("params") or {}
    return ExistingRow(
        id=str(row["id"]),
        name=str(row["name"]),
        base=row.get("base_model_id"),
        grants=grants_in(row.get("access_grants")),
        active=bool(row.get("is_active", True)),
        meta={key: value for key, value in meta.items() if value is not None},
        has_params=any(value is not None for value in params.values()),
        owner=str(row.get("user_id") or ""),
    )


def is_our_description(alias: str, text: object) -> bool:
    """Whether the pack, in this version or in 0.1, wrote what the picker says under an alias."""
    return str(text).startswith((ANSWERED_BY, f"{alias} is answered by "))


def tag_names(tags: Any) -> tuple[str, ...]:
    """The names of a row's tags."""
    return tuple(str(tag.get("name")) for tag in tags or () if isinstance(tag, dict))
