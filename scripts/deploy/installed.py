"""A plugin in Open WebUI's database, as steps of a plan: what functions and tools have in common."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from deploy.client import OpenWebUI
from deploy.errors import DeployError
from deploy.plan import Plan, value_diff, valves_diff
from deploy.plugin import AUTHOR, KIND_NAMES, LocalPlugin
from deploy.shown import message, plain

Json = dict[str, Any]
I18N_VERSION = "0.12"  # of Open WebUI: older ones show no translations, and forget those of tools


def _as_text(translations: Json | None) -> str:
    """One word a line, for a difference that people can read."""
    return "\n".join(
        f"{language} {key}: {text}"
        for language, words in sorted((translations or {}).items())
        for key, text in sorted(words.items())
    )


def refuse_old_server(server: OpenWebUI, plugin: LocalPlugin) -> None:
    """Open WebUI itself looks at the required version in the browser's editor only.

    Raises:
        DeployError: the server is older than the plugin needs.
    """
    needed = plugin.manifest.get("required_open_webui_version", "0")
    if version_numbers(server.version) < version_numbers(needed):
        raise DeployError(
            message(
                "{plugin} needs Open WebUI {needed} or newer, and {url} is {version}: update it",
                plugin=plugin.id,
                needed=needed,
                url=server.url,
                version=server.version,
            )
        )


def version_numbers(version: str) -> tuple[int, ...]:
    """`0.12.4` and what comes after it, as numbers to compare."""
    return tuple(int(number[:9]) for number in re.findall(r"[0-9]+", version)[:3])


@dataclass(frozen=True)
class InstalledPlugin:
    """A plugin's file, and what the server has under its id.

    Attributes:
        folder: of the server's routes, and of the repository.
        noun: for errors.
    """

    folder: ClassVar[str]
    noun: ClassVar[str]

    plan: Plan
    server: OpenWebUI
    plugin: LocalPlugin

    @cached_property
    def listed(self) -> Json | None:
        """What the server lists of it, before any step; None: it is not installed."""
        return self.server.plugins(self.folder).get(self.plugin.id)

    @property
    def path(self) -> str:
        """Where it is changed."""
        return f"/api/v1/{self.folder}/id/{self.plugin.id}"

    @property
    def form(self) -> Json:
        """It, as the server takes it."""
        return {
            "id": self.plugin.id,
            "name": self.plugin.name,
            "content": self.plugin.content,
            "meta": {"description": self.plugin.manifest["description"]} | self._translated({}),
        }

    def _translated(self, current: Json) -> Json:
        """What the plugin's meta is to have of other languages, those of an admin included."""
        shows = version_numbers(self.server.version) >= version_numbers(I18N_VERSION)
        words = self.plugin.i18n()
        return {"i18n": (current.get("i18n") or {}) | words} if shows and words else {}

    def plan_creation(self, *told: str, **more: Any) -> None:
        """Install it.

        Args:
            told: lines of the difference, besides the one about the plugin.
            more: what the form has besides.
        """
        self.plan.add(
            message("create {kind} {plugin}", kind=self.plugin.noun, plugin=self.plugin.id),
            [f"+ {self.plugin.summary}", *told],
            lambda: self.server.post(f"/api/v1/{self.folder}/create", self.form | more),
        )

    def plan_change(self, wanted: Json) -> Json:
        """Replace code and valves, each where they differ; gives what is installed.

        Args:
            wanted: valves that pack.yaml sets; those it does not mention keep what they have.

        Raises:
            DeployError: it is not the pack's, or a valve would be refused.
        """
        current = self._current()
        stored = self.server.valves(self.folder, self.plugin.id)
        self.plugin.check_valves(stored | wanted)
        if self.plugin.accepts(stored):
            self._plan_update(current)
            self.plan_valves(stored, stored | wanted)
        else:  # the server refuses code that refuses the stored valves, and the old code may refuse the new
            kept = {valve: value for valve, value in stored.items() if valve not in wanted}
            self.plan_valves(stored, kept)
            self._plan_update(current)
            self.plan_valves(kept, stored | wanted)
        return current

    def plan_valves(self, old: Json, new: Json) -> None:
        """Set the valves, where they differ."""
        if old != new:
            self.plan.add(
                message("set valves of {plugin}", plugin=self.plugin.id),
                valves_diff(old, new, self.plugin.secret_valves),
                lambda: self.server.post(f"{self.path}/valves/update", new),
            )

    def _current(self) -> Json:
        """What is installed, with its code, which must be by the same author."""
        current = self.server.plugin(self.folder, self.plugin.id)
        author = (current["meta"].get("manifest") or {}).get("author")
        ours = self.plugin.manifest.get("author")
        if author != ours:
            whose = message("the pack's") if ours == AUTHOR else plain(message("by {ours}", ours=ours), 100)
            raise DeployError(
                message(
                    "a {noun} with the id {plugin!r} is installed already and is not {whose} (its author "
                    "is {author!r}): delete or rename it, or leave it out with `plugins:`",
                    noun=KIND_NAMES[self.noun],
                    plugin=self.plugin.id,
                    whose=whose,
                    author=author,
                )
            )
        return current

    def _plan_update(self, current: Json) -> None:
        """Replace code, name and translations where they differ."""
        old, new = ({key: form[key] for key in ("name", "content")} for form in (current, self.form))
        translated = self._translated(current["meta"])
        if translated:
            old |= {"translations": _as_text(current["meta"].get("i18n"))}
            new |= {"translations": _as_text(translated["i18n"])}
        form = self.form
        form["meta"] |= translated
        if old != new:
            self.plan.add(
                message("update {kind} {plugin}", kind=self.plugin.noun, plugin=self.plugin.id),
                value_diff(old, new),
                lambda: self.server.post(f"{self.path}/update", form),
            )
