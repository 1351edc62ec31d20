"""The dashboard's page, and what those see who may not look at it. Nothing in it comes from elsewhere.

The page itself is in `page/`: HTML, a style sheet and scripts, each readable by itself. Every value reaches
it as text, after it has opened.
"""

import html
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import quote

from ollama_pack.base.messages import ENGLISH, in_language, known_language, message, script_words
from ollama_pack.webui.routes import html_page

DASHBOARD_PATH = "/ollama-pack"
REFUSED = frozenset({401, 403})
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
_PLAN = file_text("page/plan.js")
_CHATS = file_text("page/chats.js")
_OTHERS = file_text("page/others.js")
_MAIN = file_text("page/main.js")


def dashboard_html(nonce: str, language: str = ENGLISH) -> str:
    """The page; its one script and its one style sheet carry the nonce of the page's policy."""
    script = _BASICS + _CHARTS + _NODES + _PLAN + _CHATS + _OTHERS + _MAIN
    words = script_words(script, language)
    needed = html.escape(in_language(message("The dashboard needs JavaScript."), language))
    page = _filled_page(_PAGE, nonce, language).replace("%NOSCRIPT%", needed)
    return page.replace("%SCRIPT%", words + script)


def dashboard_page(request: Any) -> Any:
    """The dashboard."""
    nonce = token_urlsafe(16)
    return _answer(dashboard_html(nonce, page_language(request)), nonce)


def sign_in_page(request: Any, error: Any) -> Any:
    """For whoever is not signed in: the way to the form, which leads back here.

    Args:
        request: Starlette's.
        error: Open WebUI's own refusal; another error is raised again.
    """
    if error.status_code not in REFUSED:
        raise error
    sentence = message(
        "The dashboard is for the admins of this Open WebUI. Sign in as one of them to see it."
    )
    return _plain_page(request, sentence, SIGN_IN, message("Sign in"), error.status_code)


def admins_only_page(request: Any) -> Any:
    """For a user who is signed in, and no admin."""
    sentence = message("Only admins of this Open WebUI can see the dashboard. Ask one of them, or go back.")
    return _plain_page(request, sentence, "/", message("Back to the chats"), 403)


def page_language(request: Any) -> str:
    """The language for a reader: the one that the page asks for, else the browser's."""
    wanted = request.query_params.get("language") or request.headers.get("accept-language") or ""
    return known_language(str(wanted))


def _plain_page(request: Any, sentence: str, link: str, label: str, status: int) -> Any:
    nonce, language = token_urlsafe(16), page_language(request)
    page = _filled_page(_PLAIN_PAGE, nonce, language)
    for place, words in (("%SENTENCE%", sentence), ("%LABEL%", label), ("%LINK%", link)):
        page = page.replace(place, html.escape(in_language(words, language)))
    return _answer(page, nonce, status)


def _filled_page(page: str, nonce: str, language: str) -> str:
    return page.replace("%STYLE%", _STYLE).replace("%NONCE%", nonce).replace("%LANGUAGE%", language)


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
        "Vary": "Accept-Language",
    }
    return html_page(page, headers, status)
