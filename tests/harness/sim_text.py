"""What a simulated model says: always the same for the same request, and as long as is wanted."""

import hashlib
import json
import math
import re
from random import Random

__all__ = ["Draw", "answer_to"]

TASK_TOKENS = 10  # roughly: titles, tags and the like are short
_VOCABULARY = """
a the of and to in it is was that which with from over under through light water stone wind river
morning evening garden window mountain small slow bright quiet old new deep green first last every
some many people often seem find keep carry follow turn leave build learn remember between across
toward again
"""
_WORDS = _VOCABULARY.split()
_SENTENCE = 12  # words
_WANTED = re.compile(r"\b(\d{1,6}) (?:words|tokens)\b")
_TASK = "### Task:"
# The keys of the JSON that Open WebUI's prompts for background calls ask for, and whether they hold a list.
_TASK_KEYS = {"title": False, "tags": True, "follow_ups": True, "queries": True}


class Draw:
    """Lengths and words for one request.

    Args:
        median: of the lengths, in tokens.
        spread: sigma of their log-normal distribution.
        request: all that the answer depends on.
    """

    def __init__(self, median: int, spread: float, *request: object) -> None:
        seed = hashlib.sha256(repr(request).encode()).digest()
        self._dice = Random(seed)  # noqa: S311 - seeded on purpose
        self._median = median
        self._spread = spread

    def length(self) -> int:
        return max(1, round(self._dice.lognormvariate(math.log(self._median), self._spread)))

    def words(self, count: int) -> list[str]:
        """Return pieces of text, one for each token."""
        words = self._dice.choices(_WORDS, k=count)
        for start in range(0, count, _SENTENCE):
            words[start] = words[start].capitalize()
        words[_SENTENCE - 1 :: _SENTENCE] = [f"{word}." for word in words[_SENTENCE - 1 :: _SENTENCE]]
        return [words[0], *(f" {word}" for word in words[1:])]


def answer_to(question: str, draw: Draw) -> list[str]:
    """Return the pieces of an answer, one for each token.

    "Write 120 words" (or tokens) in the question sets their number; a background call of Open WebUI gets the
    JSON that it asks for; else the length is drawn.
    """
    if _TASK in question:
        for key, several in _TASK_KEYS.items():
            if f'"{key}"' in question:
                return _task_answer(key, draw, several=several)
    wanted = _WANTED.search(question)
    return draw.words(max(1, int(wanted[1])) if wanted else draw.length())


def _task_answer(key: str, draw: Draw, *, several: bool) -> list[str]:
    said = "".join(draw.words(TASK_TOKENS // 2 - 1))
    text = json.dumps({key: [said] if several else said})
    return [f"{word} " for word in text.split(" ")]
