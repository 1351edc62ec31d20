"""Names of models as the fleet compares them: `llama3` is `llama3:latest`, and `Llama3` too, as to Ollama."""

from functools import lru_cache

from ollama_pack.engines.ollama.names import DEFAULT_TAG, split_tag


@lru_cache(maxsize=1024)
def fold_name(name: str) -> str:
    """The form in which two names of one model are equal: in lower case, without the default tag."""
    folded = name.lower()
    stem, tag = split_tag(folded)
    return stem if tag == DEFAULT_TAG else folded
