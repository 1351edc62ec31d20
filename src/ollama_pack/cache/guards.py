"""What two questions must have in common before the similarity of their meanings counts at all.

Embeddings hardly see numbers, negations and names. Two questions with the same meaning have the same numbers,
as many negations, the same names, quotes and code, and no word whose opposite the other one has.

Nor do they see small differences: the more of two questions is the same, the more what is left is what they
ask. So two that are the same except for one word, one word more, or the order of their words are told apart.
Those that mean the same mostly differ in their whole form.
"""

import re
from collections import Counter
from collections.abc import Set as AbstractSet

from ollama_pack.cache.contrast_words import ADDS_NOTHING, CONTRASTS, FRAME, MARKERS, SYNONYMS
from ollama_pack.cache.normal_words import CONTRACTIONS

GUARDS_VERSION = 2  # to be raised with any change here: labels are of pairs that have passed these guards
_ANY_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_TO, _FROM = frozenset(("to", "into")), frozenset(("from",))
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
_SENTENCES = re.compile(r"[.!?]\s+\S")
_AUXILIARIES = {
    **dict.fromkeys(("is", "are", "am", "do", "does"), "now"),
    **dict.fromkeys(("was", "were", "did"), "then"),
    **dict.fromkeys(("can", "could"), "can"),
    **dict.fromkeys(("may", "might"), "may"),
    **dict.fromkeys(("have", "has"), "have"),
    **{word: word for word in ("should", "must", "will", "would", "had")},
}
_AGREE = {
    "are": "is",
    "have": "has",
    "do": "does",
    "were": "was",
    "these": "this",
    "those": "that",
    "am": "is",
}
_SMALL = frozenset(("a", "an", "the", "few", "little", "please"))
_BEFORE_NOUNS = frozenset(("a", "an", "the", "my", "your", "his", "her", "our", "their", "this"))
_CONNECTS = frozenset(("of", "in", "by", "is", "are", "be"))
_SHORTEST = 3  # letters of a word whose last s may be a plural's
_MOST_EXTRA = 2  # words more that one of two questions has


def _groups(rows: str) -> dict[str, dict[int, int]]:
    """Of each word the groups that it is in, and its place in each."""
    found: dict[str, dict[int, int]] = {}
    for number, group in enumerate(rows.split()):
        for place, words in enumerate(group.split("/")):
            for word in words.split("+"):
                found.setdefault(word, {})[number] = place
    return found


_CONTRASTS, _SYNONYMS = _groups(CONTRASTS), _groups(SYNONYMS)
_OPPOSITES_ZH = (
    "前后 上下 左右 开关 大小 多少 高低 长短 增减 买卖 男女 早晚 新旧 升降 进出 加减 优缺 冷热 胜负 始终"
)
_OPPOSED_ZH = [tuple(pair) for pair in _OPPOSITES_ZH.split()]


def may_be_same(one: str, two: str) -> bool:
    """Whether nothing that an embedding overlooks tells two questions apart.

    They are two that have different normal forms, or none.
    """
    if bool(_HAN.search(one)) != bool(_HAN.search(two)):
        return False
    if not (_names(one) <= set(_words(two)) and _names(two) <= set(_words(one))):
        return False
    checks = (_numbers, _kept, _negations, _kind)
    if not all(check(one) == check(two) for check in checks):
        return False
    return not (_opposed_zh(one, two) if _HAN.search(one) else _told_apart(one, two))


def _told_apart(one: str, two: str) -> bool:
    """Whether words tell two questions apart that are not in Chinese."""
    here, there = _plain_words(one), _plain_words(two)
    return (
        set(here) & MARKERS != set(there) & MARKERS
        or _contrasted(set(here) - set(there), set(there) - set(here))
        or _ask_otherwise(here, there)
        or _lead_elsewhere(here, there)
        or _reordered(one, two)
        or _differ_in_one(one, two)
        or bool(_SENTENCES.search(one) or _SENTENCES.search(two))
    )


def _contrasted(here: set[str], there: set[str]) -> bool:
    """Whether one has a word that the other has another one of its kind for."""
    return any(
        place != _CONTRASTS.get(other, {}).get(group, place)
        for word in here
        for group, place in _CONTRASTS.get(word, {}).items()
        for other in there
    )


def _ask_otherwise(here: list[str], there: list[str]) -> bool:
    """Whether two questions for a yes or a no begin with other verbs: can I, must I."""
    one, two = (_AUXILIARIES.get(words[0]) if words else None for words in (here, there))
    return bool(one and two and one != two)


def _lead_elsewhere(here: list[str], there: list[str]) -> bool:
    """Whether what one goes to, or comes from, is something else in the other: Celsius into Fahrenheit."""
    to, from_ = ([_after(words, prepositions) for words in (here, there)] for prepositions in (_TO, _FROM))
    swapped = any(
        any(word in there and word not in two for word in one)
        and any(word in here and word not in one for word in two)
        for one, two in (to, from_, [_after(words, {"than"}) for words in (here, there)])
    )
    return swapped or bool(to[0] & from_[1] or from_[0] & to[1])


def _after(words: list[str], prepositions: AbstractSet[str]) -> set[str]:
    """What follows some prepositions, beyond articles."""
    found = set()
    for place, word in enumerate(words):
        rest = [each for each in words[place + 1 :] if each not in _BEFORE_NOUNS]
        if word in prepositions and rest:
            found.add(rest[0])
    return found


def _reordered(one: str, two: str) -> bool:
    """Whether the same words stand in another order, and no other form of the question explains it.

    Lions eat zebras. A comma explains it, and so does one that has an "of", "in" or "is" more.
    """
    here, there = _content(one), _content(two)
    if sorted(here) != sorted(there):
        return False
    if here == there:
        return _agreeing(one) == _agreeing(two)
    connects = [
        {*_plain_words(text)} & _CONNECTS | {each for each in ("'s", ",") if each in text}
        for text in (one, two)
    ]
    return connects[0] == connects[1]


def _differ_in_one(one: str, two: str) -> bool:
    """Whether all is the same but one word, or some that one has besides: a small change is a trap."""
    here, there = sorted((_content(one), _content(two)), key=len)
    if len(here) == len(there):
        pairs = [pair for pair in zip(here, there, strict=True) if pair[0] != pair[1]]
        return (
            len(pairs) == 1
            and not _SYNONYMS.get(pairs[0][0], {}).keys() & _SYNONYMS.get(pairs[0][1], {}).keys()
        )
    if len(there) - len(here) > _MOST_EXTRA:
        return False
    rest = iter(there)
    return all(word in rest for word in here) and not Counter(there) - Counter(here) <= Counter(ADDS_NOTHING)


def _content(text: str) -> list[str]:
    """The words that do not come and go with the form of a question, in the singular."""
    return [_singular(word) for word in _plain_words(text) if word not in FRAME]


def _agreeing(text: str) -> list[str]:
    """All words but articles, in the singular: of two texts that have the same, small things differ."""
    return [_singular(_AGREE.get(word, word)) for word in _plain_words(text) if word not in _SMALL]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > _SHORTEST and word.endswith("s") and not word.endswith("ss") else word


def _plain_words(text: str) -> list[str]:
    """The words, numbers among them, without contractions."""
    found = _ANY_WORD.findall(text.lower().replace("’", "'"))  # noqa: RUF001
    return [part for word in found for part in CONTRACTIONS.get(word, (word,))]


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


def _opposed_zh(one: str, two: str) -> bool:
    here, there = set(one) - set(two), set(two) - set(one)
    return any((a in here and b in there) or (b in here and a in there) for a, b in _OPPOSED_ZH)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text.replace("’", "'"))]  # noqa: RUF001
