"""English sentences in what people read in another language."""

import re

CHINESE = {"LC_ALL": "", "LANG": "zh_CN.UTF-8"}
# Three words in a row; names of products and of models are no sentence.
_SENTENCE = re.compile(r"[A-Za-z][a-z']+(?:,? [a-z][a-z']+){2,}")
_NAMES = re.compile(r"Open WebUI(?: Ollama Pack)?|`[^`]*`|“[^”]*”|'[^']*'|\"[^\"]*\"")


def english_in(text: str) -> list[str]:
    """Sentences in English, except what is quoted and the lines of a difference."""
    lines = (line for line in text.splitlines() if not re.match(r"\s{4}|  [-+]", line))
    return [found for line in lines for found in _SENTENCE.findall(_NAMES.sub("…", line))]
