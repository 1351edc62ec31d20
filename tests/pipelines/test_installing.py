"""Ways to bring the pack onto a Pipelines server: its mounted folder, addresses of files, and the zip."""

import functools
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from harness.fixtures_pipelines import skip_unless_installed, write_pack_yaml
from harness.fixtures_pipelines_router import LLAMA
from harness.fixtures_webui import ROOT, upload
from harness.ollama_node import OllamaNode
from local.pipelines import RunningPipelines, pipelines_server

FILES = sorted(path.name for path in (ROOT / "pipelines").glob("*.py"))
ROUTED = """\
plugins: [gpu_router]
models:
  - {name: gpt-4, local_name: "llama3:8b"}
  - {name: gpt-3.5-turbo, local_name: "llama3:8b"}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[OllamaNode]:
    with OllamaNode([LLAMA]) as node:
        yield node


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPipelines]:
    """A server without pipelines, whose folder is mounted."""
    skip_unless_installed()
    with pipelines_server(tmp_path_factory.mktemp("mounted")) as server:
        yield server


def put(folder: Path, config: Path, *options: str, **environment: str) -> CompletedProcess[str]:
    """Run upload.py for a mounted folder."""
    return upload(None, str(config), "--pipelines-dir", str(folder), *options, environment=environment)


def test_into_a_mounted_folder(server: RunningPipelines, node: OllamaNode, tmp_path: Path) -> None:
    """Would catch files that the server does not load, valves that it does not get, or a second reload."""
    config = write_pack_yaml(tmp_path, node.url, aliases=ROUTED)
    done = put(server.folder, config, **server.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"done: set valves of pipeline gpu_router in {server.folder}",
        f"done: put pipeline gpu_router into {server.folder}",
        "done: reload the Pipelines server",
    ]
    api = server.api()
    offered = {model["id"] for model in api.get("/models")["data"]}
    api.close()
    assert offered == {"gpu_router.gpt-4", "gpu_router.gpt-3.5-turbo", "gpu_router.llama3:8b"}
    assert [path.name for path in server.folder.iterdir() if path.name.startswith(".")] == []
    assert put(server.folder, config, **server.environment).stdout == "nothing to change\n"


def test_into_a_folder_of_a_server_that_is_down(tmp_path: Path, node: OllamaNode) -> None:
    """Would catch an upload that needs a running server where the folder is enough, or loses a valve."""
    folder = tmp_path / "pipelines"
    (folder / "gpu_router").mkdir(parents=True)
    (folder / "gpu_router" / "valves.json").write_text('{"max_queue": 7}')
    config = write_pack_yaml(tmp_path, node.url, aliases=ROUTED)
    done = upload(None, str(config), environment={"PIPELINES_DIR": str(folder)})
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "gpu_router.py").read_bytes() == (ROOT / "pipelines/gpu_router.py").read_bytes()
    valves = json.loads((folder / "gpu_router" / "valves.json").read_text())
    assert valves == {
        "max_queue": 7,
        "nodes": f"gpu0 {node.url}",
        "aliases": "gpt-4 = llama3:8b; gpt-3.5-turbo = llama3:8b",
    }


def test_dry_run_writes_nothing(tmp_path: Path, node: OllamaNode) -> None:
    """Would catch a dry run that changes the folder."""
    config, folder = write_pack_yaml(tmp_path, node.url, aliases=ROUTED), tmp_path / "empty"
    folder.mkdir()
    done = put(folder, config, "--dry-run")
    assert done.stdout.endswith("2 changes to make; nothing was changed\n")
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_none(tmp_path: Path, node: OllamaNode) -> None:
    """Would catch a folder that is made where the admin has mistyped the mounted one."""
    done = put(tmp_path / "nowhere", write_pack_yaml(tmp_path, node.url, aliases=ROUTED))
    assert done.returncode == 1
    assert "is no folder: name the one that the Pipelines server has mounted" in done.stderr


class Quiet(SimpleHTTPRequestHandler):
    """Files over HTTP, without a line in the tests' output for each."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def addresses() -> Iterator[str]:
    """The committed files as PIPELINES_URLS names them."""
    handler = functools.partial(Quiet, directory=str(ROOT / "pipelines"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield ";".join(f"http://127.0.0.1:{http.server_port}/{name}" for name in FILES)
        http.shutdown()
        thread.join()


# What the start.sh of open-webui/pipelines does with PIPELINES_URLS, and with the frontmatter of each file,
# but for running pip. The package on PyPI has no start.sh.
START = r"""
IFS=';' read -ra ADDR <<< "$PIPELINES_URLS"
for path in "${ADDR[@]}"; do
  dest_file=$(basename "$path")
  curl -sSfL "$path" -o "$PIPELINES_DIR/$dest_file"
done
for file in "$PIPELINES_DIR"/*; do
  file_content=$(cat "$file")
  first_block=$(echo "$file_content" |
    awk '/\"\"\"/{flag=!flag; if(flag) count++; if(count == 2) {exit}} flag' )
  requirements=$(echo "$first_block" | grep -i 'requirements:')
  if [ -n "$requirements" ]; then
    requirements=$(echo "$requirements" | awk -F': ' '{print $2}' | tr ',' ' ' | tr -d '\r')
    echo "$(basename "$file"): $requirements"
  fi
done
"""


def test_pipelines_urls(tmp_path: Path, node: OllamaNode, addresses: str) -> None:
    """Would catch committed files that a container which fetches them by their addresses cannot run."""
    skip_unless_installed()
    folder = tmp_path / "pipelines"
    folder.mkdir()
    done = subprocess.run(
        ["/bin/bash", "-c", START],
        env={
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PIPELINES_URLS": addresses,
            "PIPELINES_DIR": str(folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    wanted = dict(line.split(": ") for line in done.stdout.splitlines())
    assert wanted == {"response_cache_filter.py": "redis", "response_cache_replay.py": "redis"}
    with pipelines_server(tmp_path, environment={"OLLAMA_BASE_URLS": node.url}) as server:
        api = server.api()
        assert sorted(f"{name}.py" for name in api.installed()) == FILES
        assert "gpu_router.llama3:8b" in {model["id"] for model in api.get("/models")["data"]}
        api.close()


def test_the_zip_of_a_release_has_the_committed_files(tmp_path: Path) -> None:
    """Would catch a zip that, unpacked into the mounted folder, gives other files than the repository has."""
    subprocess.run([sys.executable, ROOT / "scripts/package.py"], check=True, capture_output=True)
    with zipfile.ZipFile(ROOT / "dist/pipelines.zip") as release:
        release.extractall(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert all((tmp_path / name).read_bytes() == (ROOT / "pipelines" / name).read_bytes() for name in FILES)
