"""Sentences for people, in English and in the languages of the catalogue.

`message("Node {node} is down.", node="gpu1")` is a `str` that reads as English and can be shown in another
language later, when it is known who reads it: `in_language(sentence, "zh-CN")`. `locale/*.po` has the
translations; `scripts/messages.py` keeps them complete.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Self

from ollama_pack.base.translations import TRANSLATIONS

ENGLISH = "en"
_QUALITY = re.compile(r";\s*q=\s*([\d.]+)")
# Put before a page's script: its `t("Sentence {name}", {name: value})` is in the page's language.
_SCRIPT_T = """
const T_WORDS = %WORDS%;
const t = (english, values = {}) => (T_WORDS[english] || english).replace(
  /[{](\\w+)[}]/g, (all, name) => name in values ? values[name] : all);
"""


class Message(str):
    """A sentence in English, which knows what it was made of.

    Attributes:
        template: the English sentence with its placeholders: the key in the catalogue.
        values: what stands in them: messages and exceptions are translated as well.
    """

    __slots__ = ("template", "values")

    template: str
    values: Mapping[str, object]

    def __new__(cls, text: str, template: str = "", values: Mapping[str, object] | None = None) -> Self:
        made = super().__new__(cls, text)
        made.template = template or text
        made.values = values or {}
        return made

    def with_values(self, values: Mapping[str, object]) -> "Message":
        """The same sentence with other values in some places."""
        merged = {**self.values, **values}
        return Message(_filled(self.template, merged, ENGLISH), self.template, merged)

    def translated(self, language: str) -> str:
        """The sentence in a language, for code of another plugin: each has only the words of its own."""
        return in_language(self, language)


def message(template: str, /, **values: object) -> Message:
    """A sentence for people. Write the template as a literal: the catalogue is made of what the source says.

    Args:
        template: whole sentences in English; placeholders are those of `str.format`.
        values: one for each placeholder.
    """
    return Message(_filled(template, values, ENGLISH), template, values)


def joined(parts: Iterable[object], separator: str = " · ") -> Message:
    """A line made of parts, such as `gpt-4 → llama3:8b · on gpu1`: each part is translated by itself.

    Args:
        parts: messages, exceptions or other values; the empty ones are left out.
        separator: stands between them; a message is translated, too.
    """
    kept = [part for part in parts if part not in ("", None)]
    names = [f"part{number}" for number in range(len(kept))]
    template = "{between}".join(f"{{{name}}}" for name in names)
    return message(template, **dict(zip(names, kept, strict=True)), between=separator)


def in_language(thing: object, language: str) -> str:
    """A sentence in a reader's language; in English where the catalogue lacks it.

    Args:
        thing: a message, an exception that was raised with one, or any other text.
        language: as `known_language` reads it.
    """
    if isinstance(thing, BaseException):
        thing = said_by(thing)
    known = known_language(language)
    table = TRANSLATIONS.get(known, {})
    if not isinstance(thing, Message):
        return table.get(str(thing), str(thing))
    if known == ENGLISH:
        return str(thing)
    if not thing.values and thing.template == str(thing):  # any text: braces in it are no placeholders
        return table.get(thing.template, str(thing))
    try:
        return _filled(table.get(thing.template, thing.template), thing.values, known)
    except Exception:  # noqa: BLE001 - a value that cannot be shown again: never break what reports an error
        return str(thing)


def said_by(error: BaseException) -> Message:
    """What an error says: the message that it was raised with, or that is its `message`; else its text."""
    for found in (getattr(error, "message", None), *error.args[:1]):
        if isinstance(found, Message):
            return found
    return Message(str(error))


@lru_cache(maxsize=64)  # asked for each sentence of a page
def known_language(wanted: str) -> str:
    """The best language of the catalogue for what a reader asks for; `en` where there is none.

    Args:
        wanted: a tag such as `zh-CN` or `zh_CN.UTF-8`, or the value of an `Accept-Language` header.
    """
    for tag in _by_preference(wanted):
        primary = re.split(r"[-_.@]", tag.lower())[0]
        if primary in {ENGLISH, "c", "posix"}:
            break
        if found := next((known for known in TRANSLATIONS if known.split("-")[0] == primary), None):
            return found
    return ENGLISH


def script_words(script: str, language: str) -> str:
    """What to put before a page's script: `t`, and the sentences that this script has, in a language."""
    table = TRANSLATIONS.get(known_language(language), {})
    used = {english: other for english, other in table.items() if _in_script(english) in script}
    return _SCRIPT_T.replace("%WORDS%", json.dumps(used, ensure_ascii=False).replace("<", "\\u003c"))


def _in_script(english: str) -> str:
    return json.dumps(english, ensure_ascii=False)


def _by_preference(wanted: str) -> list[str]:
    weighted = []
    for part in re.split("[,:]", wanted):
        found = _QUALITY.search(part)
        quality = float(found[1]) if found and found[1].replace(".", "", 1).isdigit() else 1.0
        if quality > 0 and (tag := part.partition(";")[0].strip()):
            weighted.append((-quality, tag))
    return [tag for _, tag in sorted(weighted, key=lambda one: one[0])]


def _filled(template: str, values: Mapping[str, object], language: str) -> str:
    shown = {
        name: in_language(value, language) if isinstance(value, str | BaseException) else value
        for name, value in values.items()
    }
    return template.format_map(shown)
