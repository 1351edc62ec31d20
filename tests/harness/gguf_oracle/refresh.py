"""Asks gguf-parser-go how much memory the models of `gguf_headers` take, and writes `figures.json`.

PYTHONPATH=tests:src python tests/harness/gguf_oracle/refresh.py     # needs Go; half a minute the first time
"""

import json
import subprocess
import tempfile
from pathlib import Path

from harness.gguf_headers import MODELS

FOLDER = Path(__file__).parent
CONTEXTS = (4096, 32_768)


def main() -> None:
    """Write the figures of each model at each context."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        files = {str(Path(scratch) / f"{number}.gguf"): model for number, model in enumerate(MODELS)}
        for path, model in files.items():
            model.header.write(Path(path))
        for context in CONTEXTS:
            command = ["go", "run", ".", str(context), *files]
            answer = subprocess.run(command, cwd=FOLDER, check=True, capture_output=True).stdout
            for path, figures in json.loads(answer).items():
                figures.pop("architecture")
                found.setdefault(files[path].name, {})[str(context)] = figures
    (FOLDER / "figures.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
