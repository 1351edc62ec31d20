"""The steps of a walk through the pack, and the ways to ask that they share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import openai
from rich.console import Console
from rich.markup import escape

from deploy.errors import DeployError
from deploy.shown import message
from local.webui import Account, RunningWebUI

QUESTION = "In one short sentence: what is the sky?"


class DemoError(Exception):
    """Something that the demo shows did not happen, or it cannot start: one sentence with what to do."""


@dataclass
class Walk:
    """The steps of the demo, printed as they are done.

    Attributes:
        failed: how many did not show what they should.
    """

    console: Console
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        self.console.print(escape(text))

    def step(self, title: str, show: Callable[[], str]) -> None:
        """Do a step and print what it showed, or why it failed; the walk goes on either way."""
        try:
            result = show()
        except (openai.OpenAIError, DeployError, DemoError) as error:
            self.failed += 1
            self.console.print(f"[red]✗[/] {escape(title)}: {escape(str(error))}")
        else:
            self.console.print(f"[green]✓[/] {escape(title)}: {escape(result)}")


@contextmanager
def openai_client(webui: RunningWebUI, account: Account) -> Iterator[openai.OpenAI]:
    """The client that OpenAI publishes, pointed at Open WebUI."""
    with openai.OpenAI(base_url=f"{webui.url}/api", api_key=account.token, max_retries=0) as client:
        yield client


def ask(webui: RunningWebUI, account: Account, model: str) -> str:
    with openai_client(webui, account) as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=40
        )
    text = answer.choices[0].message.content
    if not text:
        raise DemoError(message("{model} gave an empty answer", model=answer.model))
    return message("{model} answers {text!r}", model=answer.model, text=short(text))


def stream(webui: RunningWebUI, account: Account, model: str) -> str:
    started = time.monotonic()
    first, pieces = 0.0, []
    with openai_client(webui, account) as client:
        stream = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=40, stream=True
        )
        for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                first = first or time.monotonic() - started
                pieces.append(piece)
    if not pieces:
        raise DemoError(message("the stream was empty"))
    return message(
        "{count} pieces, the first after {first:.1f} s: {text!r}",
        count=len(pieces),
        first=first,
        text=short("".join(pieces)),
    )


def refused(webui: RunningWebUI, account: Account, model: str) -> str:
    """The refusal that is expected, in Open WebUI's own words."""
    try:
        ask(webui, account, model)
    except openai.BadRequestError as error:
        return message(
            "refused as it should be ({status}, {detail!r})",
            status=error.status_code,
            detail=error.response.json()["detail"],
        )
    raise DemoError(message("was answered, and should have been refused"))


def short(text: str, limit: int = 70) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
