"""The dashboard's page, and what those see who may not look at it. Nothing in it comes from elsewhere.

The page itself is in `page/`: HTML, a style sheet and scripts, each readable by itself. Every value reaches
it as text, after it has opened.
"""

import html
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import quote

from ollama_pack.webui.routes import html_page

DASHBOARD_PATH = "/ollama-pack"
SIGN_IN = f"/auth?redirect={quote(DASHBOARD_PATH, safe='')}"


def file_text(name: str) -> str:
    """The text of a file next to this module. The packager writes the text in place of the call."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


_PAGE = file_text("page/index.html")
_PLAIN_PAGE = file_text("page/plain.html")
_STYLE = file_text("page/style.css")
_BASICS = file_text("page/basics.js")
_CHARTS = file_text("page/charts.js")
_NODES = file_text("page/nodes.js")
_CHATS = file_text("page/chats.js")
_OTHERS = file_text("page/others.js")
_MAIN = file_text("page/main.js")


def dashboard_html(nonce: str) -> str:
    """The page; its one script and its one style sheet carry the nonce of the page's policy."""
    scripts = _BASICS + _CHARTS + _NODES + _CHATS + _OTHERS + _MAIN
    return _with_style(_PAGE.replace("%SCRIPT%", scripts), nonce)


def dashboard_page(request: Any) -> Any:  # noqa: ARG001 - its language is looked at
    """The dashboard."""
    nonce = token_urlsafe(16)
    return _answer(dashboard_html(nonce), nonce)


def sign_in_page(request: Any, status: int) -> Any:  # noqa: ARG001 - its language is looked at
    """For whoever is not signed in: the way to the form, which leads back here."""
    sentence = "The dashboard is for the admins of this Open WebUI. Sign in as one of them to see it."
    return _plain_page(sentence, SIGN_IN, "Sign in", status)


def admins_only_page(request: Any) -> Any:  # noqa: ARG001 - its language is looked at
    """For a user who is signed in, and no admin."""
    sentence = (
        "Only admins of this Open WebUI can see the dashboard. Ask one of them, or go back to your chats."
    )
    return _plain_page(sentence, "/", "Back to the chats", 403)


def _plain_page(sentence: str, link: str, label: str, status: int) -> Any:
    filled = _PLAIN_PAGE.replace("%SENTENCE%", html.escape(sentence)).replace("%LABEL%", html.escape(label))
    nonce = token_urlsafe(16)
    return _answer(_with_style(filled.replace("%LINK%", html.escape(link)), nonce), nonce, status)


def _with_style(page: str, nonce: str) -> str:
    return page.replace("%STYLE%", _STYLE).replace("%NONCE%", nonce)


def _answer(page: str, nonce: str, status: int = 200) -> Any:
    """A page with the policy that lets in what carries its nonce."""
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }
    return html_page(page, headers, status)
