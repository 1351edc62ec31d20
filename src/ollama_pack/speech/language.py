"""Language tags (BCP 47, RFC 5646): which language is spoken, for Chinese, in which script to write it."""

import re
from dataclasses import dataclass
from typing import Literal

from ollama_pack.base.messages import message
from ollama_pack.speech.errors import LanguageTagError
from ollama_pack.speech.languages import LANGUAGE_ALIASES, LANGUAGES, bcp47_code, code_of_name

AUTO = "auto"
MAX_TAG = 64  # characters; longer ones are none
CHINESE = frozenset({"zh", "yue"})

ChineseScript = Literal["hans", "hant", "hant-tw", "hant-hk"]

_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})"
    r"(?:-(?P<extended>[a-z]{3}))?"
    r"(?:-(?P<script>[a-z]{4}))?"
    r"(?:-(?P<region>[a-z]{2}|[0-9]{3}))?"
    r"(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"  # variants
    r"(?:-[a-wy-z0-9](?:-[a-z0-9]{2,8})+)*"  # extensions
    r"(?:-x(?:-[a-z0-9]{1,8})+)?"  # private use
)
_VARIANTS: dict[str, ChineseScript] = {"TW": "hant-tw", "HK": "hant-hk", "MO": "hant-hk"}


@dataclass(frozen=True, slots=True)
class LanguageTag:
    """A language as somebody asked for it.

    Attributes:
        code: as `LANGUAGES` has it.
        text: the tag in its usual upper and lower case.
        script: to write Chinese in; None: it is another language.
    """

    code: str
    text: str
    script: ChineseScript | None = None


def parse_language(tag: str) -> LanguageTag | None:
    """Read a language tag, or a name such as `english`.

    None is `auto`, or nothing at all: the engine finds out. The names are those that OpenAI's `verbose_json`
    answers with. An underscore may stand for a hyphen, and upper case for lower. `zh` alone is Mandarin in
    Simplified script, as Unicode's likely subtags have it; Taiwan, Hong Kong and Macau write Traditional.

    Raises:
        LanguageTagError: it is no tag, or the language is not among those that Whisper knows.
    """
    plain = tag.strip()[: MAX_TAG + 1].replace("_", "-").lower()
    if plain in {AUTO, ""}:
        return None
    if len(plain) > MAX_TAG:
        raise LanguageTagError(
            f"{plain[:MAX_TAG]}…", message("is too long for a language tag"), valid_languages()
        )
    if code := code_of_name(plain):
        plain = bcp47_code(code)
    found = _TAG.fullmatch(plain)
    if found is None:
        raise LanguageTagError(tag, message("is no BCP 47 tag such as zh-CN or en"), valid_languages())
    code = _code(found["language"], found["extended"])
    if code is None:
        raise LanguageTagError(tag, message("is not known"), valid_languages())
    script, region = (found["script"] or "").title(), (found["region"] or "").upper()
    text = "-".join(filter(None, (found["language"], found["extended"], script, region)))
    return LanguageTag(code, text, _chinese_script(tag, code, script, region))


def valid_languages() -> tuple[str, ...]:
    """What may be asked for, with an example of a region and of a script."""
    return (AUTO, "zh-CN", "zh-TW", "zh-HK", "zh-Hant", *(bcp47_code(code) for code in LANGUAGES))


def disagree(asked: LanguageTag, heard: str) -> bool:
    """Whether a detected language is really another one: Whisper mixes up what is written alike."""
    alike = (CHINESE, frozenset({"no", "nn", "da"}), frozenset({"bs", "hr", "sr"}), frozenset({"id", "ms"}))
    return asked.code != heard and not any({asked.code, heard} <= group for group in alike)


def _code(language: str, extended: str | None) -> str | None:
    """Whisper's code; `zh-yue` is Cantonese, `zh-cmn` Mandarin."""
    spoken = extended if language == "zh" and extended else language
    return spoken if spoken in LANGUAGES else LANGUAGE_ALIASES.get(spoken)


def _chinese_script(tag: str, code: str, script: str, region: str) -> ChineseScript | None:
    if code not in CHINESE:
        return None
    if script not in {"", "Hans", "Hant"}:
        raise LanguageTagError(tag, message("has the script {script!r}", script=script), ("Hans", "Hant"))
    by_region = _VARIANTS.get(region)
    if script == "Hans" or (not script and by_region is None and (code == "zh" or region)):
        return "hans"
    return by_region or ("hant-hk" if code == "yue" else "hant")
