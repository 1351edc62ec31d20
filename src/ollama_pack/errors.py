"""The base of every error that the pack raises on purpose. Each part defines its own in its `errors.py`."""

import re


class PackError(Exception):
    """Base of the family: catch this to catch whatever the pack raises on purpose."""


class SettingError(PackError, ValueError):
    """A setting cannot be used. It is a `ValueError` too, so that a valve can refuse it.

    Attributes:
        reason: what is wrong and what to do. Never a secret, nor the password in a URL.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def error_code(error: Exception) -> str:
    """What programs tell errors apart by, such as `audio_too_large`."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
