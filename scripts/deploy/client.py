"""Open WebUI's and the Pipelines server's HTTP APIs, as far as an uploader needs them."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from urllib.parse import quote

import requests

from deploy.errors import DeployError, ServerError, UnreachableError

TIMEOUT_SECONDS = 60.0

Json = dict[str, Any]


class HttpApi:
    """JSON over HTTP to one server, with errors that say what was asked of whom."""

    def __init__(self, url: str, key: str, name: str) -> None:
        """`key` is sent as a bearer token; `name` is what messages call the server."""
        if not url.startswith(("http://", "https://")):
            raise DeployError(f"{url!r} is no address of {name}: it starts with http:// or https://")
        if not re.fullmatch(r"[!-~]*", key):
            raise DeployError(f"the token or key for {name} has a character that none has: copy it anew")
        self.url = url.rstrip("/")
        self.key = key
        self.name = name
        self._session = requests.Session()
        self._session.auth = self._authorize
        # A slow step may outlast the server's patience with an idle connection, which then ends as we write.
        self._session.headers["Connection"] = "close"

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request. A mere header would lose to an entry for the host in the user's ~/.netrc."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def close(self) -> None:
        self._session.close()

    def get(self, path: str, **params: str) -> Any:
        return self._ask("GET", path, params=params)

    def post(self, path: str, body: Json | None = None, **params: str) -> Any:
        return self._ask("POST", path, params=params, json=body)

    def send_file(self, path: str, name: str, content: bytes, media_type: str = "text/x-python") -> Any:
        return self._ask("POST", path, files={"file": (name, content, media_type)})

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        url = f"{self.url}{path}"
        try:
            answer = self._session.request(
                method, url, timeout=TIMEOUT_SECONDS, allow_redirects=False, **request
            )
        except requests.RequestException as error:
            reason = f"{self.name} does not answer at {self.url} ({_cause(error)})"
            raise UnreachableError(f"{reason}: is it running, and is the address right?") from error
        if answer.is_redirect:  # followed, it would make a GET of a POST
            target = answer.headers["Location"].removesuffix(path)
            raise UnreachableError(f"{self.url} sends us on to {target}: give that as {self.name}'s address")
        if not answer.ok:
            detail = _detail(answer)
            raise ServerError(
                f"{self.name} refused {method} {path}: {answer.status_code} {detail}",
                answer.status_code,
                detail,
            )
        try:
            return answer.json()
        except requests.JSONDecodeError as error:
            reason = f"{url} answers, but not as {self.name} does: is the address right?"
            raise UnreachableError(reason) from error


class OpenWebUI(HttpApi):
    """An Open WebUI, as its admin."""

    def __init__(self, url: str, token: str = "") -> None:
        super().__init__(url, token, "Open WebUI")

    @classmethod
    def sign_in(cls, url: str, email: str, password: str) -> "OpenWebUI":
        """Sign in by password.

        Raises:
            DeployError: the server is not there, or does not accept them.
        """
        guest = cls(url)
        try:
            answer = guest.post("/api/v1/auths/signin", {"email": email, "password": password})
        except ServerError as error:
            if error.status >= 500:  # noqa: PLR2004 - the server's fault, not the password's
                raise
            raise DeployError(
                f"{url} does not accept this e-mail address ({email}) and password: {error.detail}"
            ) from error
        finally:
            guest.close()
        return cls(url, answer["token"])

    def require_admin(self) -> Json:
        """Return the signed-in user, who must be an admin."""
        try:
            user: Json = self.get("/api/v1/auths/")
        except ServerError as error:
            if error.status not in {401, 403}:
                raise
            raise DeployError(
                f"{self.url} does not accept the token ({error.detail}): make a new one under "
                "Settings → Account, or set OPEN_WEBUI_EMAIL and OPEN_WEBUI_PASSWORD instead"
            ) from error
        if user["role"] != "admin":
            raise DeployError(
                f"{user['email']} is signed in as {user['role']!r}: uploading needs the token of an admin"
            )
        return user

    @cached_property
    def version(self) -> str:
        return str(self.get("/api/version")["version"])

    def models(self, *, refresh: bool = False) -> dict[str, Json]:
        """Every model that the connections and rows offer now, by id."""
        listed = self.get("/api/models", refresh="true") if refresh else self.get("/api/models")
        return {model["id"]: model for model in listed["data"]}

    def can_use_tools(self, model: str) -> bool:
        """Whether one of Ollama's models can use tools, by its own account; True where it gives none."""
        try:
            shown = self.post("/ollama/api/show", {"model": model})
        except ServerError:
            return True
        return "tools" in shown.get("capabilities", ["tools"])

    def model_rows(self) -> dict[str, Json]:
        """Every row of the models table, overrides of base models included, by id."""
        listed = [*self.get("/api/v1/models/export"), *self.get("/api/v1/models/base")]
        return {row["id"]: row for row in listed}

    def model_row(self, model: str) -> Json:
        """One row of the models table, with what the list leaves out."""
        row: Json = self.get("/api/v1/models/model", id=model)
        return row

    def group_ids(self) -> dict[str, str]:
        """Name → id of every group."""
        return {group["name"]: group["id"] for group in self.get("/api/v1/groups/")}

    def plugins(self, kind: str) -> dict[str, Json]:
        """The installed `functions` or `tools`, by id, without their code."""
        return {plugin["id"]: plugin for plugin in self.get(f"/api/v1/{kind}/")}

    def plugin(self, kind: str, plugin_id: str) -> Json:
        found: Json = self.get(f"/api/v1/{kind}/id/{quote(plugin_id)}")
        return found

    def valves(self, kind: str, plugin_id: str) -> Json:
        """The valves that are set; the others have their defaults."""
        return self.get(f"/api/v1/{kind}/id/{quote(plugin_id)}/valves") or {}


class Pipelines(HttpApi):
    """A Pipelines server."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url, key, "the Pipelines server")

    def installed(self) -> dict[str, Json]:
        """The loaded pipelines, by id.

        Raises:
            DeployError: the server does not accept the key.
        """
        try:
            listed = self.get("/pipelines")["data"]
        except ServerError as error:
            if error.status not in {401, 403}:
                raise
            raise DeployError(
                f"{self.url} does not accept the API key ({error.detail}): set PIPELINES_API_KEY"
            ) from error
        return {pipeline["id"]: pipeline for pipeline in listed}

    def valves(self, pipeline_id: str) -> Json:
        found: Json = self.get(f"/{quote(pipeline_id)}/valves")
        return found


def _detail(answer: requests.Response) -> str:
    """The server's own words on an error, however it wraps them."""
    try:
        body = answer.json()
    except requests.JSONDecodeError:
        return answer.text.strip()[:500] or answer.reason
    detail = body.get("detail", body) if isinstance(body, Mapping) else body
    return str(detail)[:2000]


def _cause(error: Exception) -> str:
    """The innermost reason of a failed request: `Connection refused` rather than a pool's report."""
    match error:
        case requests.Timeout():
            return f"no answer within {TIMEOUT_SECONDS:g} s"
        case requests.ConnectionError():
            words = str(error.args[0] if error.args else error).rsplit(": ", maxsplit=1)[-1].strip("')>\"")
            return re.sub(r"^\[Errno -?\d+\] ", "", words)
    return str(error)
