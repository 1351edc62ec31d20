"""Ids of models that clients can use: alias tables and addresses split at spaces, commas and the like.

Those that `gpu_router` answers begin with its name, on Open WebUI and on the Pipelines server.
"""

import re
from collections.abc import Iterable
from hashlib import sha256

ROUTER = "gpu_router."
MAX_ID = 200  # Open WebUI takes 256 characters, the router's own prefix included

_UNFIT = re.compile(r"[^\w./:@+~-]+")


def usable_id(name: str) -> str:
    """The id under which a model is offered: its name, with dashes for what is unfit in an id."""
    fit = _UNFIT.sub("-", name).strip("-") if _UNFIT.search(name) else name
    return fit if 0 < len(fit) <= MAX_ID else f"{fit[: MAX_ID - 9]}-{_mark(name)}".lstrip("-")


def _mark(name: str) -> str:
    return sha256(name.encode(errors="replace")).hexdigest()[:8]


class ModelIds:
    """The ids under which the models of one node are offered, and the names by which it is asked for them."""

    def __init__(self) -> None:
        """No name is known yet."""
        self._names: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def learn(self, names: Iterable[str]) -> None:
        """These are the models now. Where two names give one id, the second gets a mark of its own."""
        self._names = {}
        for name in sorted(names, key=lambda name: (usable_id(name) != name, name)):
            fit = usable_id(name)
            self._names[fit if fit not in self._names else f"{fit}-{_mark(name)}"] = name
        self._ids = {name: fit for fit, name in self._names.items()}

    def offered(self, name: str) -> str:
        """The id for a name."""
        return self._ids.get(name) or usable_id(name)

    def real(self, fit: str) -> str:
        """The name for an id; one that is not known is a name already."""
        return self._names.get(fit, fit)
