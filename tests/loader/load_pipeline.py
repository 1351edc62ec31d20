"""Load one file with the real Pipelines server's code and print what came of it as a line of JSON.

    python load_pipeline.py SERVER_FOLDER FILE

A script of its own, because the server's modules are called `main`, `utils` and `config`.
"""

import asyncio
import importlib
import json
import os
import sys
import traceback
import warnings
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

SECRET = "s3cret-s3cret-s3cret"  # in what valves are tried with, and in no error
_NO_TEXT = ([SECRET], {SECRET: SECRET}, SECRET.encode() + b"\xff")
_ROWS = (f"gpu0 http://a key={SECRET} {SECRET}", f"gpu0 http://u:{SECRET}@a")
_TEXTS = (
    *(
        SECRET,
        SECRET[:7],
        f"{SECRET} {SECRET}",
        f"redis://:{SECRET}@{SECRET}",
        f"rediss://h?{SECRET}={SECRET}",
    ),
    *(f"http://u:{SECRET}@a", *_ROWS),
)


def valves_errors(kind: Any) -> list[str]:
    """What is said when what is secret cannot be saved, as Open WebUI and the Pipelines server log it."""
    said = []
    for name, field in kind.model_fields.items():
        texts = _ROWS if name == "nodes" else _TEXTS if "password" in str(field.json_schema_extra) else ()
        for value in (*_NO_TEXT, *texts):
            try:
                kind(**{name: value})
            except ValueError as error:
                said.append("".join(traceback.format_exception(error)) + repr(error))
    return said


class WithoutPack(MetaPathFinder):
    """An import hook: there is no `ollama_pack`, although the tests' environment has it installed."""

    @staticmethod
    def owns(name: str) -> bool:
        return name.partition(".")[0] == "ollama_pack"

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002
        if self.owns(fullname):
            message = f"a generated file must not need {fullname}"
            raise ModuleNotFoundError(message, name=fullname)


def main(server: str, path: Path) -> None:
    """Load the file and print."""
    os.environ["PIPELINES_DIR"] = str(path.parent)  # else a file that fails goes to ./pipelines/failed
    sys.path.insert(0, server)
    loader: Any = importlib.import_module("main")
    loader.install_frontmatter_requirements = lambda _: None  # pip would change the tests' environment
    sys.meta_path.insert(0, WithoutPack())
    known = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = asyncio.run(loader.load_module_from_path(path.stem, str(path)))
    loaded = pipeline is not None
    valves = getattr(pipeline, "valves", None)
    answer = {
        "loaded": loaded,
        "frontmatter": loader.parse_frontmatter(path.read_text().split('"""')[1]) if loaded else {},
        "type": getattr(pipeline, "type", "pipe"),
        "valves": type(valves)().model_dump() if valves else {},
        "schema": type(valves).model_json_schema() if valves else {},
        "valves_errors": valves_errors(type(valves)) if valves else [],
        "new_modules": sorted(name for name in set(sys.modules) - known if WithoutPack.owns(name)),
    }
    print(json.dumps(answer))  # noqa: T201 - it is how the test gets it


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
