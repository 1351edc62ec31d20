"""Public traces of requests to language models: when each came, how long it was, which blocks it shares.

The files and their licences are described in the traces' own README. Prompts have no text; a prompt is a
chain of blocks, and equal blocks are equal beginnings.
"""

import csv
import gzip
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ollama_pack.routing.decide.view import PromptBlock

ROOT = Path(__file__).parents[2]
DEFAULT_FOLDER = ROOT.parent / "shared/data/traces"
BLOCK_TOKENS = 512  # of a Mooncake block
USERS = 50  # the traces name no users: so many take turns


class TraceMissingError(FileNotFoundError):
    """The file of a trace is not there."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        number: its place in the trace.
        at: when it comes, in seconds from the first one.
        blocks: the prompt.
        output: tokens of its answer.
        session: what a router that keeps sessions together would go by.
        user: for fairness.
    """

    number: int
    at: float
    blocks: tuple[PromptBlock, ...]
    output: int
    session: str
    user: str


@dataclass(frozen=True, slots=True)
class Trace:
    """A public trace.

    Attributes:
        file: its name in the folder of the traces.
        prompt_rate: tokens a second at which a node evaluates its prompts in the measurements.
    """

    file: str
    prompt_rate: float


TRACES = {
    "mooncake": Trace("mooncake-conversation.jsonl.gz", 8000.0),
    "azure": Trace("azure-2023-conversation.csv.gz", 2500.0),
}


def read_trace(
    name: str, folder: Path = DEFAULT_FOLDER, scale: float = 1.0, first: int | None = None
) -> list[TraceRequest]:
    """The requests of a trace, in the order in which they come.

    Args:
        name: one of `TRACES`, or a path to a file of one of the two kinds.
        folder: where the files are.
        scale: what times are multiplied with: 0.5 lets requests come twice as fast.
        first: how many to read; None: all.

    Raises:
        TraceMissingError: the file is not there.
    """
    path = folder / TRACES[name].file if name in TRACES else Path(name)
    if not path.is_file():
        raise TraceMissingError(
            f"The trace {path} does not exist: pass the folder that has {path.name} with --traces."
        )
    read = _mooncake if ".jsonl" in path.name else _azure
    requests = list(itertools.islice(read(path), first))
    begins = requests[0].at if requests else 0.0
    return [
        TraceRequest(one.number, (one.at - begins) * scale, one.blocks, one.output, one.session, one.user)
        for one in requests
    ]


def _mooncake(path: Path) -> Iterator[TraceRequest]:
    with gzip.open(path, "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            tokens, chains = max(1, row["input_length"]), row["hash_ids"]
            blocks = tuple(
                PromptBlock(chain, min(BLOCK_TOKENS * place, tokens))
                for place, chain in enumerate(chains, start=1)
            )
            own = chains[1] if len(chains) > 1 else chains[0]  # the first block is a system prompt of all
            yield TraceRequest(
                number, row["timestamp"] / 1000, blocks, row["output_length"], f"s{own}", f"u{number % USERS}"
            )


def _azure(path: Path) -> Iterator[TraceRequest]:
    with gzip.open(path, "rt") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            came = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            block = PromptBlock(number, max(1, int(row["ContextTokens"])))
            yield TraceRequest(
                number, came, (block,), int(row["GeneratedTokens"]), f"s{number}", f"u{number % USERS}"
            )


def least_waits(requests: list[TraceRequest], prompt_rate: float) -> tuple[list[float], float]:
    """The times to first token that no policy can beat, and the share of prompt tokens that is reused.

    Every block that any earlier request had is held everywhere, and nobody waits.
    """
    seen: set[int] = set()
    waits: list[float] = []
    reused = tokens = 0
    for request in requests:
        held = max(
            (block.upto for block in itertools.takewhile(lambda b: b.chain in seen, request.blocks)),
            default=0,
        )
        seen.update(block.chain for block in request.blocks)
        length = request.blocks[-1].upto
        waits.append((length - held + 1) / prompt_rate)
        reused, tokens = reused + held, tokens + length
    return waits, reused / tokens
