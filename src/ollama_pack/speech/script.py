"""Writing Chinese in the script that was asked for, with OpenCC: Whisper writes whichever it likes."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce

from ollama_pack.base.messages import message
from ollama_pack.speech.language import ChineseScript, LanguageTag
from ollama_pack.speech.values import SpeechNote, SpeechSegment, SpokenWord

# Characters are converted, words are not: a transcript says what was said (so not s2twp).
_CONFIGS: dict[ChineseScript, tuple[str, ...]] = {
    "hans": ("t2s",),
    "hant": ("s2t",),
    "hant-tw": ("s2tw",),
    "hant-hk": ("tw2t", "s2hk"),  # what Whisper writes in Traditional script is Taiwan's
}
_PACKAGE = "opencc"

# A prompt in the script that is wanted makes Whisper more likely to write it; used where there is no OpenCC.
_PROMPTS: dict[ChineseScript, str] = {
    "hans": "以下是普通话的句子。",
    "hant": "以下是普通話的句子。",
    "hant-tw": "以下是普通話的句子。",
    "hant-hk": "以下是普通話的句子。",  # also where Cantonese is spoken: it is the script that matters
}

TextConverter = Callable[[str], str]


def script_converter(tag: LanguageTag | None) -> TextConverter | None:
    """What turns text into the tag's script.

    Returns:
        A function, one that changes nothing for other languages than Chinese; None: OpenCC is not installed.
    """
    if tag is None or tag.script is None:
        return str
    try:
        from opencc import OpenCC  # noqa: PLC0415 - optional: not part of Open WebUI
    except ImportError:
        return None
    steps: list[TextConverter] = [OpenCC(name).convert for name in _CONFIGS[tag.script]]
    return lambda text: reduce(lambda done, step: step(done), steps, text)


def missing_converter(tag: LanguageTag) -> SpeechNote:
    """What to tell the reader when there is no converter."""
    text = message(
        "The text may not be in the script of {tag}: `pip install {package}` where Open "
        "WebUI runs, and it is converted.",
        tag=tag.text,
        package=_PACKAGE,
    )
    return SpeechNote("script", text)


def script_prompt(tag: LanguageTag) -> str:
    """A sentence in the tag's script; empty for other languages than Chinese."""
    return _PROMPTS[tag.script] if tag.script else ""


def converted(segment: SpeechSegment, convert: TextConverter) -> SpeechSegment:
    """A segment in another script, its words too."""
    text = convert(segment.text)
    if text == segment.text:
        return segment
    return replace(segment, text=text, words=_converted_words(segment.words, convert))


def _converted_words(words: tuple[SpokenWord, ...], convert: TextConverter) -> tuple[SpokenWord, ...]:
    """What stands around a word decides what becomes of it: so all are converted together if possible."""
    whole = "".join(word.text for word in words)
    together = convert(whole)
    if len(together) != len(whole):
        return tuple(replace(word, text=convert(word.text)) for word in words)
    done, start = [], 0
    for word in words:
        done.append(replace(word, text=together[start : start + len(word.text)]))
        start += len(word.text)
    return tuple(done)
