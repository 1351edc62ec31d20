"""What stops an upload or a check.

DeployError
├── ConfigError       pack.yaml cannot be used
├── UsageError        the command or its environment does not say what is to be done
├── ServerError       a server answered with an error
└── UnreachableError  a server did not answer
"""

from pathlib import Path

from deploy.shown import message

SHOWN_PROBLEMS = 20


class DeployError(Exception):
    """Base of the family: its text is one or more sentences for the admin, with what to do."""


class ConfigError(DeployError):
    """pack.yaml cannot be used.

    Attributes:
        problems: `(line, key, what is wrong)` of each, in the order of the file.
    """

    def __init__(self, file: Path, problems: list[tuple[int, str, str]]) -> None:
        shown = [f"{file}:{line}: {key}: {reason}" for line, key, reason in problems[:SHOWN_PROBLEMS]]
        if left := len(problems) - len(shown):
            shown.append(message("… and {count} more", count=left))
        super().__init__("\n".join(shown))
        self.problems = problems


class UsageError(DeployError):
    """The command's words or its environment do not say what is to be done."""


class ServerError(DeployError):
    """A server answered with an error.

    Attributes:
        status: the HTTP status.
        detail: the server's own words.
    """

    def __init__(self, reason: str, status: int, detail: str) -> None:
        super().__init__(reason)
        self.status = status
        self.detail = detail


class UnreachableError(DeployError):
    """A server did not answer.

    Attributes:
        remedy: what to do about it; empty: nothing special is known.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy
