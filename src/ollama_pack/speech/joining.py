"""Putting pieces of text together: with spaces where the script has them between words, else without."""

import unicodedata
from collections.abc import Iterable
from itertools import pairwise

# First and last code points of scripts without spaces between words (Unicode's Scripts.txt). Hangul has them.
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x303F),  # CJK radicals, symbols and punctuation
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFF9F),  # full-width forms, half-width Katakana
    (0x20000, 0x323AF),
)
_WIDE = frozenset("WF")


def is_spaceless(character: str) -> bool:
    """Whether a character's script has no spaces between words."""
    return any(first <= ord(character) <= last for first, last in _SPACELESS)


def joined_text(texts: Iterable[str]) -> str:
    """Texts one after the other, each without the spaces around it."""
    parts = [text for text in map(str.strip, texts) if text]
    out = parts[:1]
    for before, after in pairwise(parts):
        out += [" ", after] if _has_space(before, after) else [after]
    return "".join(out)


def tokens_of(text: str) -> list[str]:
    """Where a line may be broken: words with the space before them; in scripts without spaces, characters.

    Punctuation stays where it belongs: what closes with the token before, what opens with the one after. The
    tokens one after the other are the text with single spaces.
    """
    tokens: list[str] = []
    for character in " ".join(text.split()):
        if tokens and not _begins_token(tokens[-1], character):
            tokens[-1] += character
        else:
            tokens.append(character)
    return tokens


def columns(text: str) -> int:
    """How wide a text is in a font of fixed width: Chinese characters take two columns."""
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(character) in _WIDE for character in text)


def letters(text: str) -> int:
    """How many letters and digits there are."""
    return sum(character.isalnum() for character in text)


def _begins_token(before: str, character: str) -> bool:
    last = before[-1]
    if character == " ":
        return True
    if last == " " or _is_opening(last):
        return False
    begins = character.isalnum() or _is_opening(character)
    return begins and (is_spaceless(character) or is_spaceless(last))


def _is_opening(character: str) -> bool:
    return unicodedata.category(character) in {"Ps", "Pi"}


def _has_space(before: str, after: str) -> bool:
    """None between two letters of scripts without spaces, whatever punctuation is between them."""
    if _is_full_mark(before[-1]) or _is_full_mark(after[0]):
        return False
    last = next(filter(str.isalnum, reversed(before)), " ")
    first = next(filter(str.isalnum, after), " ")
    return not (is_spaceless(last) and is_spaceless(first))


def _is_full_mark(character: str) -> bool:
    """Punctuation of East Asia, which has its space in itself."""
    return is_spaceless(character) and not character.isalnum() and not unicodedata.combining(character)
