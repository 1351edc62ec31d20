"""One HTTP request to a server that may be anything: bounded time and memory, no redirect followed."""

import json
import queue
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin
from urllib.request import getproxies

import requests
import urllib3

from deploy.errors import UnreachableError
from deploy.shown import message, plain, shown_address

TIMEOUT_SECONDS = 60.0  # for the whole answer
MAX_BYTES = 64 * 2**20  # a list of a thousand models, each with a picture
MAX_ERROR_BYTES = 64 * 2**10
MAX_PARTS = 3_000_000  # commas and brackets of JSON: each stands for an object in memory
_CHUNK = 64 * 2**10
# OpenSSL's codes for a certificate that is signed by itself or by somebody whom this machine does not know.
_UNKNOWN_AUTHORITY = {18, 19, 20, 21}
_OK, _MULTIPLE_CHOICES, _BAD_REQUEST = 200, 300, 400


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        url: that was asked.
        status: the HTTP status.
        reason: its words.
        headers: by name, in any case.
        body: at most `MAX_BYTES`; of an error the beginning.
    """

    url: str
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return _OK <= self.status < _MULTIPLE_CHOICES

    @property
    def redirection(self) -> str:
        """Where it sends us instead; empty: nowhere."""
        return self.headers.get("Location", "") if _MULTIPLE_CHOICES <= self.status < _BAD_REQUEST else ""

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is none, or it would take too much memory or stack.
        """
        if sum(self.body.count(mark) for mark in (b",", b"[", b"{")) > MAX_PARTS:
            raise ValueError(message("too many values"))
        try:
            return json.loads(self.body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        except RecursionError as error:
            raise ValueError(message("nested too deeply")) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(message("{name} is not JSON", name=name))


class Bearer(requests.auth.AuthBase):
    """Signs a request. A mere header would lose to an entry for the host in the user's ~/.netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign it, or see to it that nothing else does."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def fetch(method: str, url: str, *, key: str = "", seconds: float | None = None, **request: Any) -> Answer:
    """Send a request and read the answer. A redirect is not followed: it would carry the key elsewhere.

    Args:
        method: of HTTP.
        url: where.
        key: sent as a bearer token; empty: none.
        seconds: for the whole of it; None: `TIMEOUT_SECONDS`.
        request: further arguments of `requests.request`.

    Raises:
        UnreachableError: no whole answer came in time, or it was too long. The text is the reason alone.
    """
    limit = TIMEOUT_SECONDS if seconds is None else seconds
    return _within(limit, url, lambda: _answer(method, url, Bearer(key), limit, request))


def _within(seconds: float, url: str, work: Callable[[], Answer]) -> Answer:
    """The result of some work, waited for in another thread: the HTTP library limits only each silence."""
    done: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except Exception as error:  # noqa: BLE001 - raised again below, in the thread that waits
            done.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        result = done.get(timeout=seconds)
    except queue.Empty:
        raise UnreachableError(message("no answer within {seconds:g} s", seconds=seconds)) from None
    if isinstance(result, Answer):
        return result
    if isinstance(result, UnreachableError):
        raise result
    if isinstance(result, OSError | ValueError | urllib3.exceptions.HTTPError):  # of requests too
        raise UnreachableError(
            *_cause(result, seconds, url)
        ) from None  # the library's words may show the key
    raise result


def _answer(method: str, url: str, auth: Bearer, seconds: float, request: dict[str, Any]) -> Answer:
    with requests.Session() as session:
        session.auth = auth
        # A slow step may outlast the server's limit for an idle connection, which then ends as we write.
        session.headers.update({"Connection": "close", "Accept-Encoding": "identity"})
        with session.request(
            method, url, timeout=seconds, allow_redirects=False, stream=True, **request
        ) as answer:
            encoding = answer.headers.get("Content-Encoding", "identity")
            if encoding.strip().lower() not in {"", "identity"}:
                raise UnreachableError(message("its answer is compressed, which was not asked for"))
            body = _body(answer, MAX_BYTES if answer.ok else MAX_ERROR_BYTES)
            return Answer(url, answer.status_code, plain(answer.reason or ""), answer.headers, body)


def _body(answer: requests.Response, limit: int) -> bytes:
    body = bytearray()
    while chunk := answer.raw.read(min(_CHUNK, limit + 1 - len(body)), decode_content=False):
        body += chunk
        if len(body) > limit:
            if answer.ok:
                raise UnreachableError(message("its answer is longer than {limit} MiB", limit=limit // 2**20))
            return bytes(body[:limit])
    return bytes(body)


def _cause(error: Exception, seconds: float, url: str) -> tuple[str, str]:
    """Why a request failed, and what to do about it where that is known."""
    innermost = _innermost(error)
    reason, remedy = _words(innermost), ""
    match error, innermost:
        case requests.Timeout() | urllib3.exceptions.TimeoutError(), _:
            reason = message("no answer within {seconds:g} s", seconds=seconds)
        case requests.exceptions.InvalidURL() | UnicodeError(), _:
            reason = message("it is not a valid address")
        case requests.exceptions.InvalidHeader(), _:
            reason = message("the token or key cannot be sent")
        case OSError(), _ if "CA certificate bundle" in str(error):
            reason = message("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names a file that is not there")
        case requests.exceptions.ProxyError(), _:
            proxy = shown_address(requests.utils.select_proxy(url, getproxies()))
            reason = message(
                "the proxy {address} does not let us through: {reason}", address=proxy, reason=reason
            )
            remedy = message(
                "start or correct that proxy, which HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names, or list "
                "the server's name in NO_PROXY"
            )
        case _, ssl.SSLCertVerificationError(verify_message=words, verify_code=code):
            reason = message("its certificate is not accepted: {reason}", reason=plain(words))
            if code in _UNKNOWN_AUTHORITY:
                remedy = message(
                    "set REQUESTS_CA_BUNDLE to a file with the certificate of the authority that signed it"
                )
        case _, ssl.SSLError(reason=words):
            reason = message("no HTTPS connection is made: {reason}", reason=plain(words))
            remedy = message("does its address begin with http://?")
    return reason, remedy


def _innermost(error: BaseException) -> BaseException:
    """The reason of an error: `Connection refused` rather than a pool's report."""
    inner = [one for one in (getattr(error, "reason", None), *error.args) if isinstance(one, BaseException)]
    return _innermost(inner[0]) if inner else error


def _words(error: BaseException) -> str:
    words = str(error).rsplit(": ", maxsplit=1)[-1]
    return plain(re.sub(r"^\[(Errno -?\d+|SSL)\] ", "", words), 200) or type(error).__name__


def sends_on(answer: Answer, path: str = "") -> tuple[str, bool]:
    """Where a redirect leads, less a path that is the same there, and whether it is the same."""
    target = urljoin(answer.url, re.split(r"[?#]", answer.redirection, maxsplit=1)[0])
    is_same_page = target.endswith(path)
    return shown_address(target.removesuffix(path)), is_same_page


def login_page(name: str) -> str:
    """What to do where a redirect leads to another page."""
    return message(
        "it seems to be the login page of something in front of {name}. Give an address that reaches {name} "
        "itself, or let requests to its API pass there",
        name=name,
    )
