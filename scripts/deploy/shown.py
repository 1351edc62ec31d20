"""Text that may be shown: one line, no control character, no secret.

What a server or a file says may hold escape sequences, line breaks that look like our own lines, and secrets
in places where nobody expects them. So two things are done. A message never quotes a value that is secret or
may hold a secret (`shown_address`, `deploy.config`). And every secret that a run meets is noted in `SECRETS`,
and is masked in all that is printed.
"""

import codecs
import io
import json
import os
import re
import sys
import unicodedata
from typing import Any
from urllib.parse import quote, unquote

from rich.console import Console
from rich.text import Text

from ollama_pack.base.messages import in_language, known_language
from ollama_pack.base.messages import message as sentence

HIDDEN = "…"
SHORTEST = 4  # characters; a shorter secret would be masked in the middle of common words

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # categories of Unicode
_SECRET_NAME = re.compile(
    r"passw|(?:key|secret|passphrase|token|credentials?|authorization|headers?)$", re.IGNORECASE
)
# These read texts of any length that others have written: none may go over a part of a text again and again.
_SCHEME = re.compile(r"[a-z][a-z+]*:/*", re.IGNORECASE)  # also where slashes are missing or too many
_QUERY_VALUE = re.compile(r"[?&;](?P<name>[\w.-]*)=(?P<value>[^&#\s]+)")
_QUERY_SECRET = re.compile(r"password|secret|token|key", re.IGNORECASE)
# The key of a row of nodes: all up to the next setting or row, in case that it has spaces in it.
_ROW_KEY = re.compile(r"\b(?:key|password|token|secret|header[\w.-]*)(?<!\s)\s*=\s*", re.IGNORECASE)
_ROW_END = re.compile(r"[\n;]|(?<!\s)\s+\w[\w.-]*=")
LONGEST_ADDRESS = 2000  # characters; what is longer is none
_ADDRESS = re.compile(
    r"(?:[a-z][a-z+]{1,19}:/{0,3})?(?:[\w.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?(?:/[\w.~%/-]*)?", re.IGNORECASE
)
_LOGIN = re.compile(r"(?<=://)[^\s]*@")
# What stands for our own marks where the output's encoding lacks them.
_IN_ASCII = {"✓": "+", "✗": "x", "→": "->", "…": "...", "·": "-"}


def message(template: str, /, **values: object) -> str:
    """A sentence in the language of who runs the script, which `LC_ALL`, `LC_MESSAGES` or `LANG` names.

    Args:
        template: as the pack's own `message` takes it, and collected in the same way.
        values: one for each placeholder.
    """
    return translated(sentence(template, **values))


def translated(thing: object) -> str:
    """A message or an error of the pack's in the same language."""
    return in_language(thing, reader())


def reader() -> str:
    """The language of who runs the script, as a tag such as `zh-CN`."""
    env = os.environ
    return known_language(env.get("LC_ALL") or env.get("LC_MESSAGES") or env.get("LANG") or "")


class Secrets:
    """The secrets that this run has met, to be masked in what it prints."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._longest_first: tuple[str, ...] = ()

    def add(self, value: object) -> None:
        """Note a secret, and the words that it consists of."""
        text = str(value or "")
        for part in {text, text.strip(), unquote(text), *text.split()} - {""}:
            self._add_forms(part)

    def add_text(self, text: str) -> None:
        """Note the secrets in a text that may have addresses and rows of nodes in it."""
        for row in re.split(r"[\n;,]", text):
            before, at, _ = row.rpartition("@")
            if at:
                self._add_login(_SCHEME.sub("", before, count=1) if _SCHEME.match(before) else before)
        for found in _QUERY_VALUE.finditer(text):
            if _QUERY_SECRET.search(found["name"]):
                self.add(found["value"])
        found_key = _ROW_KEY.search(text)
        while found_key:
            end = _ROW_END.search(text, found_key.end())
            until = end.start() if end else len(text)
            self.add(text[found_key.end() : until].strip())
            found_key = _ROW_KEY.search(text, until)

    def _add_login(self, text: str) -> None:
        """Note user name and password in what stands before an address's @."""
        login = text.rpartition("/" if "//" in text else " ")[2]
        user, colon, password = login.partition(":")
        self.add(password if colon else user)
        for piece in re.split(r"[/:@?#\s]+", password):
            self.add(piece)

    def add_values(self, value: object, name: str = "") -> None:
        """Note the secrets in JSON or valves, by the names of the keys and the look of the texts."""
        if isinstance(value, dict):
            for key, inner in value.items():
                self.add_values(inner, name if is_secret_name(name) else str(key))
        elif isinstance(value, list):
            for inner in value:
                self.add_values(inner, name)
        elif is_secret_name(name) and not isinstance(value, bool):
            self.add(value)
        elif isinstance(value, str):
            self.add_text(value)

    def forget(self) -> None:
        """Know none any more."""
        self._known.clear()

    def mask(self, text: str) -> str:
        """A text without any of them."""
        if len(self._longest_first) != len(self._known):
            self._longest_first = tuple(sorted(self._known, key=len, reverse=True))
        for secret in self._longest_first:
            if secret in text:
                text = text.replace(secret, HIDDEN)
        return text

    def clean(self, reason: str) -> str:
        """A message without any of them, nor a piece of one that it quotes."""

        def shown(found: re.Match[str]) -> str:
            quoted = found[1] or found[2]
            held = any(quoted in secret and not secret.startswith(f"{quoted}://") for secret in self._known)
            return found[0].replace(quoted, HIDDEN) if held else found[0]

        return re.sub(r"'([^']+)'|\"([^\"]+)\"", shown, self.mask(reason))

    def _add_forms(self, secret: str) -> None:
        """As it stands, and as JSON, Python and a URL write it."""
        escaped = json.dumps(secret)[1:-1]
        unescaped = json.dumps(secret, ensure_ascii=False)[1:-1]
        encodable = secret.encode("utf-8", "replace").decode()
        forms = {secret, escaped, unescaped, repr(secret)[1:-1], quote(encodable, safe=""), printable(secret)}
        self._known |= {form for form in forms if len(form) >= SHORTEST}


SECRETS = Secrets()


def is_secret_name(name: str) -> bool:
    """Whether a key, valve or variable of this name holds a secret."""
    return bool(_SECRET_NAME.search(name))


def printable(text: str) -> str:
    """A text without control and formatting characters: a space for each."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if unicodedata.category(letter) in _UNSEEN else letter for letter in text)


def plain(text: object, limit: int = 500) -> str:
    """A text from elsewhere as a part of one sentence: one line, masked, cut where it is long."""
    said = SECRETS.mask(str(text)[: 100 * limit])
    line = " ".join(printable(said).split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def shown_address(address: object) -> str:
    """An address without user name, password, query and fragment; `…` where it cannot be told apart."""
    text = str(address)
    if len(text) > LONGEST_ADDRESS:
        return HIDDEN
    bare = re.split(r"[?#]", _LOGIN.sub("", text), maxsplit=1)[0]
    # Without a scheme it may be anything, such as a key in the wrong place.
    is_host = "://" in text or bool(re.match(r"[\w-]+(\.[\w-]+)+|[\w-]+:\d", bare) and "@" not in text)
    return plain(bare) if is_host and _ADDRESS.fullmatch(bare) else HIDDEN


def print_anywhere() -> None:
    """Let the output have any encoding, such as that of a pipe on Windows: what it lacks shows as `?`."""
    codecs.register_error("in_ascii", _in_ascii)
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes it by itself
        sys.stdout.reconfigure(errors="in_ascii")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(letter, "?") for letter in lacking), error.end


def say_json(console: Console, value: Any) -> None:
    """Print JSON for programs: escaped where the output's encoding may lack a letter, so nothing is lost."""
    console.print_json(data=value, ensure_ascii=not console.encoding.startswith("utf"))


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print a text, or parts of it with their styles. Line breaks in it are ours, and stay."""
    shown = Text()
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        safe = "\n".join(map(printable, SECRETS.mask(text).split("\n")))
        shown.append(safe, style)
    console.print(shown)
