"""English sentences in what people read in another language."""

import re

CHINESE = {"LC_ALL": "", "LANG": "zh_CN.UTF-8"}
# Three words in a row; names of products and of models are no sentence.
_SENTENCE = re.compile(r"[A-Za-z][a-z']+(?:,? [a-z][a-z']+){2,}")
_NAMES = re.compile(r"Open WebUI(?: Ollama Pack)?|`[^`]*`|“[^”]*”|'[^']*'|\"[^\"]*\"")
# What Chinese texts call by its Latin name: products, units and forms of data.
_LATIN = frozenset(
    re.findall(
        r"\w+",
        "API CPU CSV GB GPU GiB HTTP JSON JavaScript MB MiB Ollama OpenAI Open Pack Pipelines Prometheus "
        "Redis SQLite TLS URL WebUI Whisper h min ms s token vLLM",
    )
)
_ASCII = re.compile(r"[!-~]+")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")


def english_in(text: str) -> list[str]:
    """Sentences in English, except what is quoted and the lines of a difference."""
    lines = (line for line in text.splitlines() if not re.match(r"\s{4}|  [-+]", line))
    return [found for line in lines for found in _SENTENCE.findall(_NAMES.sub("…", line))]


def latin_in(text: str, *names: str) -> list[str]:
    """Words in Latin letters, except products, units and what is quoted or looks like a name, such as `gpu0`.

    Args:
        text: Chinese.
        names: that stand in it, and are none of ours.
    """
    known = _LATIN.union(*(re.findall(r"\S+", name) for name in names))
    runs = (run.strip("()[]{},;:.!?%\"'") for run in _ASCII.findall(_NAMES.sub("…", text)))
    return [run for run in runs if _WORD.fullmatch(run) and run not in known]
