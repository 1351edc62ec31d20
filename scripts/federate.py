"""Several sites learn together how often similar answers are wrong: see docs/federation.md.

    federate.py server --folder F          one of them, or anybody: the meeting point, for as long as it runs
    federate.py site --folder F --url …    each site: takes part in the rounds, for as long as it runs
    federate.py round --folder F           at the server: one round

`F/agreement.toml` is the same file everywhere. It runs in an environment of its own, which
`scripts/prepare .venv-federation federation` makes: Flower is not for Open WebUI's.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deploy.shown import message, translated
from federation.counts import AGREEMENT, AgreementError, read_agreement
from federation.masking import MOST_SITES
from package import command_line

HERE = Path(__file__).resolve().parent
APP = ("__init__.py", "counts.py", "masking.py", "site_app.py", "server_app.py")
_PROJECT = """[project]
name = "ollama-pack-federation"
version = "1.0.0"
description = "Counts of judged pairs, added up over sites"
license = "MIT"
dependencies = []

[tool.flwr.app]
publisher = "open-webui-ollama-pack"

[tool.flwr.app.components]
serverapp = "federation.server_app:app"
clientapp = "federation.site_app:app"

[tool.flwr.app.config]
round = 0
"""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = command_line(translated(__doc__))
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("server", help=message("run the meeting point"))
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=9092)
    server.add_argument(
        "--certificate", type=Path, help=message("TLS certificate; without it only this machine can connect")
    )
    server.add_argument("--key", type=Path, help=message("private key of the certificate"))
    server.add_argument("--authority", type=Path, help=message("certificate of the authority that signed it"))
    one = roles.add_parser("round", help=message("one round, on the machine of the server"))
    one.add_argument("--server", default="127.0.0.1:9092", metavar="HOST:PORT")
    one.add_argument(
        "--authority",
        type=Path,
        help=message("as for `server`; without it only a server on this machine can be asked"),
    )
    site = roles.add_parser("site", help=message("take part as a site"))
    site.add_argument("--server", default="127.0.0.1:9092", metavar="HOST:PORT")
    site.add_argument(
        "--authority",
        type=Path,
        help=message("as for `server`; without it only a server on this machine can be asked"),
    )
    site.add_argument("--url", required=True, help=message("address of this site's Open WebUI"))
    site.add_argument(
        "--key-file", type=Path, required=True, help=message("file with an API key of one of its admins")
    )
    site.add_argument(
        "--port",
        type=int,
        default=9094,
        help=message("port on this machine for Flower's own processes; default: 9094"),
    )
    for each in (server, one, site):
        each.add_argument(
            "--folder",
            type=Path,
            required=True,
            help=message("folder with agreement.toml, and where state is kept"),
        )
    args = parser.parse_args(arguments)
    try:
        agreed = read_agreement(args.folder)
    except AgreementError as error:
        return _fail(translated(error))
    if agreed.sites > MOST_SITES:
        return _fail(message("`sites` must be {most} at most", most=MOST_SITES))
    if not (Path(sys.executable).parent / "flwr").exists():
        return _fail(
            message(
                "Flower is missing here: run scripts/prepare .venv-federation federation, and this with "
                ".venv-federation/bin/python"
            )
        )
    os.environ |= {
        "OLLAMA_PACK_FEDERATION": str(args.folder.resolve()),
        "FLWR_HOME": str(args.folder.resolve() / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    return {"server": _server, "round": _round, "site": _site}[args.role](args)


def _server(args: argparse.Namespace) -> int:
    options = ["--host", args.host, "--port", str(args.port), "--disable-runtime-dependency-installation"]
    if args.certificate:
        options += ["--ssl-certfile", str(args.certificate), "--ssl-keyfile", str(args.key)]
        options += ["--ssl-ca-certfile", str(args.authority)]
    elif args.host in _LOOPBACK:
        options += ["--insecure"]
    else:
        return _fail(message("a server for other machines needs --certificate, --key and --authority"))
    from flwr.superlink.cli.flower_superlink import flower_superlink  # noqa: PLC0415 - where Flower is

    from federation import server_app  # noqa: F401, PLC0415 - loaded once, for all copies
    from federation.processes import run_server_task, serve  # noqa: PLC0415 - see above

    secret = args.folder / "secret"
    where = f"localhost:{args.port}" if args.certificate else f"{args.host}:{args.port}"
    argv = ["flower-superlink", *options]
    serve(flower_superlink, argv, where, secret, run_server_task, args.authority)
    return 0


def _round(args: argparse.Namespace) -> int:
    way = _way(args)
    if way is None:
        return _fail(message("a server on another machine needs --authority"))
    done = sorted(int(each.stem.removeprefix("round-")) for each in args.folder.glob("round-*.json"))
    number = (done or [0])[-1] + 1
    home = Path(os.environ["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    connection = [f'address = "{args.server}"']
    connection += (
        [f'root-certificates = "{args.authority.resolve()}"'] if args.authority else ["insecure = true"]
    )
    lines = ["[superlink]", 'default = "pack"', "", "[superlink.pack]", *connection]
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    app = app_folder(args.folder)
    result = args.folder / f"round-{number}.json"
    # Its number is used up, even if this ends half-way: a site gives nothing twice for one number
    result.write_text(json.dumps({"round": number, "sum": None}), encoding="utf-8")
    run = [_flower("flwr"), "run", str(app), "pack", "--run-config", f"round={number}", "--stream"]
    subprocess.run(run, check=False)
    if json.loads(result.read_text(encoding="utf-8"))["sum"] is None:
        return _fail(message("round {number} did not come about: the lines above say why", number=number))
    said = message(
        "round {number}: the sum of all sites is in {file}, and each site has it", number=number, file=result
    )
    print(said)
    return 0


def _site(args: argparse.Namespace) -> int:
    way = _way(args)
    if way is None:
        return _fail(message("a server on another machine needs --authority"))
    place = {"url": args.url, "key_file": str(args.key_file.resolve())}
    (args.folder / "open-webui.json").write_text(json.dumps(place), encoding="utf-8")
    _run_only(app_folder(args.folder))
    from flwr.supernode.cli.flower_supernode import flower_supernode  # noqa: PLC0415 - where Flower is

    from federation.processes import run_site_task, serve  # noqa: PLC0415 - see above
    from federation.site_app import app  # noqa: PLC0415 - see above; loaded once, for all copies

    argv = ["flower-supernode", "--superlink", args.server, *way, "--port", str(args.port)]
    serve(
        flower_supernode, argv, f"127.0.0.1:{args.port}", args.folder / "secret", partial(run_site_task, app)
    )
    return 0


def _way(args: argparse.Namespace) -> list[str] | None:
    if args.authority:
        return ["--root-certificates", str(args.authority)]
    return ["--insecure"] if args.server.rpartition(":")[0].strip("[]") in _LOOPBACK else None


def app_folder(folder: Path) -> Path:
    """The app that runs at the server and at each site, with the agreement in it."""
    app = folder / "app"
    shutil.rmtree(app, ignore_errors=True)
    (app / "federation").mkdir(parents=True)
    for name in APP:
        shutil.copy(HERE / "federation" / name, app / "federation" / name)
    shutil.copy(folder / AGREEMENT, app / "federation" / AGREEMENT)
    (app / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
    return app


def _run_only(app: Path) -> None:
    """Flower sends each site the app that it is to run: refuse any other than the site's own copy."""
    from flwr.cli.build import build_fab_from_disk  # noqa: PLC0415 - not in Open WebUI's environment
    from flwr.supernode import start_client_internal as supernode  # noqa: PLC0415 - see above

    own = hashlib.sha256(build_fab_from_disk(app)).hexdigest()
    read_config = supernode.get_fused_config_from_fab

    def only_own(content: bytes, run: Any) -> Any:
        if hashlib.sha256(content).hexdigest() != own:
            sys.exit(
                _fail(
                    message(
                        "The server's app, or its agreement, is another than this site's: nothing was given."
                    )
                )
            )
        return read_config(content, run)

    supernode.get_fused_config_from_fab = only_own


def _flower(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
