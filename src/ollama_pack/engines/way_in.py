"""What a node is asked with besides the request: its login, its key, its headers."""

import base64
import re
from dataclasses import dataclass, field
from string import punctuation
from urllib.parse import quote, unquote, urlsplit

Header = tuple[str, str]

_TEMPLATE = re.compile(r"\{\{[A-Z_]+\}\}")  # Open WebUI's, such as {{USER_ID}}


@dataclass(frozen=True, slots=True)
class WayIn:
    """How a node lets the router in. Only the address may be shown.

    Attributes:
        url: the node's address, without a login.
        key: sent as a bearer token; empty: none.
        login: `user:password` for basic authentication; empty: none.
        headers: name and value of what is sent with every request; values may have templates.
        auth: how Open WebUI signs in there, of one of its connections; empty: with the key, if there is one.
        cookies: the browser's cookies are sent along with its chats, as such a connection may ask for.
    """

    url: str
    key: str = field(default="", repr=False)
    login: str = field(default="", repr=False)
    headers: tuple[Header, ...] = field(default=(), repr=False)
    auth: str = ""
    cookies: bool = False

    @property
    def needs_user(self) -> bool:
        """Whether it signs in with a token of the user who asks, so that nobody else can look at the node."""
        return self.auth not in {"", "bearer", "none"}

    @property
    def own_headers(self) -> dict[str, str]:
        """The headers, with nothing for templates, and values as Open WebUI sends them: ASCII alone."""
        safe = f"{punctuation} \t"
        return {name: quote(_TEMPLATE.sub("", value), safe=safe) for name, value in self.headers}

    @property
    def fixed_headers(self) -> dict[str, str]:
        """What is sent with a request that no user asks for, as a look at the node is."""
        own = self.own_headers
        if any(name.lower() == "authorization" for name in own):
            return own
        if self.key and self.auth in {"", "bearer"}:
            return {"Authorization": f"Bearer {self.key}", **own}
        if self.login:
            return {"Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}", **own}
        return own


def split_login(url: str) -> tuple[str, str]:
    """An address without its login, and the login as `user:password`, empty where there is none.

    Raises:
        ValueError: it is no address.
    """
    parts = urlsplit(url)
    if parts.username is None and parts.password is None:
        return url, ""
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), login
