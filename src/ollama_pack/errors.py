"""The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`."""

import re


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


def error_code(error: Exception) -> str:
    """What programs tell errors apart by, such as `audio_too_large`."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
