"""Which words the house does not use, and what it says instead."""

HOUSE_WORDS = {"utilize": "use", "leverage": "use"}


def in_house_words(text: str) -> str:
    """A text in the house's own words."""
    for word, better in HOUSE_WORDS.items():
        text = text.replace(word, better)
    return text
