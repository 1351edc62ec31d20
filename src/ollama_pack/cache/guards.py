"""What two questions must have in common before the similarity of their meanings counts at all.

Embeddings hardly see numbers, negations and names. Two questions with the same meaning have the same numbers,
as many negations, the same names, quotes and code, and no word whose opposite the other one has.
"""

import re
from collections import Counter

from ollama_pack.cache.normal_words import CONTRACTIONS

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")
_PARTS = re.compile(r"[A-Za-z]+|[^A-Za-z]+")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_KEPT = re.compile(r"`[^`]*`|\"[^\"]*\"|“[^”]*”|《[^》]*》|\S*[/\\@_={}\[\]^~<>$*+]\S*|\S*\(\)\S*")
_SENTENCE_BEGINS = re.compile(r"(?:^|[.!?:,]\s*)$")
_HAN = re.compile(r"[\u3400-\u9fff]")
_NOT = frozenset(
    ("not", "no", "never", "none", "nobody", "nothing", "neither", "nor", "without", "hardly", "cannot")
)
_NOT_ZH = re.compile("不|没|無|无|非|未|勿|别|禁止")
_NUMBER_ZH = re.compile("[一二三四五六七八九十百千万亿两半]")
_KINDS = frozenset(("who", "whom", "whose", "where", "when", "why", "how"))
_OPPOSITES = """
before/after with/without enable/disable open/close start/stop start/end begin/end increase/decrease
first/last best/worst largest/smallest highest/lowest longest/shortest oldest/youngest more/less
most/least all/some all/any buy/sell import/export upload/download install/uninstall encrypt/decrypt
advantages/disadvantages pros/cons cause/effect causes/effects legal/illegal safe/unsafe win/lose
won/lost must/may can/should is/was are/were will/did left/right up/down in/out on/off push/pull
read/write ascending/descending male/female he/she my/your singular/plural from/to i/you morning/evening
gain/lose formal/informal accept/decline possible/impossible north/south east/west minimum/maximum
"""
_OPPOSED = [tuple(pair.split("/")) for pair in _OPPOSITES.split()]
_OPPOSITES_ZH = (
    "前后 上下 左右 开关 大小 多少 高低 长短 增减 买卖 男女 早晚 新旧 升降 进出 加减 优缺 冷热 胜负 始终"
)
_OPPOSED_ZH = [tuple(pair) for pair in _OPPOSITES_ZH.split()]


def may_be_same(one: str, two: str) -> bool:
    """Whether nothing that an embedding overlooks tells two questions apart."""
    if bool(_HAN.search(one)) != bool(_HAN.search(two)):
        return False
    if not (_names(one) <= set(_words(two)) and _names(two) <= set(_words(one))):
        return False
    checks = (_numbers, _kept, _negations, _kind)
    return all(check(one) == check(two) for check in checks) and not _opposed(one, two)


def _numbers(text: str) -> tuple[list[str], list[str]]:
    """In their order: 15 % of 80 is not 80 % of 15."""
    digits = "".join(f" {''.join(CONTRACTIONS.get(word.lower(), (word,)))} " for word in _PARTS.findall(text))
    return _NUMBER.findall(digits), _NUMBER_ZH.findall(text)


def _kept(text: str) -> Counter[str]:
    return Counter(_KEPT.findall(text))


def _negations(text: str) -> int:
    said = (part for word in _words(text) for part in CONTRACTIONS.get(word, (word,)))
    return sum(part in _NOT for part in said) + len(_NOT_ZH.findall(text))


def _names(text: str) -> frozenset[str]:
    """Words in capitals that do not begin a sentence, and Latin words among Chinese ones."""
    if _HAN.search(text):
        return frozenset(_words(text))
    found = (match for match in _WORD.finditer(text) if match[0][0].isupper())
    inside = (match for match in found if not _SENTENCE_BEGINS.search(text[: match.start()]))
    return frozenset(match[0].lower() for match in inside) - {"i", "i'm", "i'd", "i've", "i'll"}


def _kind(text: str) -> frozenset[str]:
    return frozenset(_words(text)) & _KINDS


def _opposed(one: str, two: str) -> bool:
    here, there = set(_words(one)), set(_words(two))
    pairs = [(a, b, here, there) for a, b in _OPPOSED] + [(a, b, set(one), set(two)) for a, b in _OPPOSED_ZH]
    return any(
        (a in first - second and b in second - first) or (b in first - second and a in second - first)
        for a, b, first, second in pairs
    )


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text.replace("’", "'"))]  # noqa: RUF001
