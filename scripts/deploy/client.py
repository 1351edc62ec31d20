"""Open WebUI's and the Pipelines server's HTTP APIs, as far as an uploader needs them.

What a server answers is checked for its shape here, so that the rest can rely on it.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

from deploy.errors import DeployError, ServerError, UnreachableError
from deploy.shown import SECRETS, message, plain, shown_address
from deploy.web import Answer, fetch, login_page, sends_on

Json = dict[str, Any]

# Shapes of answers, for `fits`.
_GRANTS = (None, [{"principal_type": str, "principal_id": str, "permission": str}])
_META: tuple[Any, ...] = (None, {})
_ROW = {
    "id": str,
    "name": str,
    "base_model_id": (None, str),
    "is_active": bool,
    "meta": _META,
    "params": (None, {}),
    "access_grants": _GRANTS,
}
_MODEL = {"id": str, "info": (None, {"meta": _META}), "owned_by": (None, str)}
_PLUGINS: Mapping[str, Any] = {
    "functions": [{"id": str, "is_active": bool, "is_global": bool}],
    "tools": [{"id": str}],
}
_PLUGIN = {"id": str, "name": str, "content": str, "meta": {"manifest": _META}, "access_grants": _GRANTS}
_NOT_FOUND = 404
_AUDIO = {"stt": {"ENGINE": str, "OPENAI_API_BASE_URL": str, "OPENAI_API_KEY": str}, "tts": {}}


def fits(value: Any, shape: Any) -> bool:
    """Whether JSON has a shape.

    A shape is a type, None, a list of one shape, a dict of keys that must fit, or a tuple of alternatives.
    """
    match shape:
        case None:
            return value is None
        case type():
            return isinstance(value, shape)
        case tuple():
            return any(fits(value, one) for one in shape)
        case [one]:
            return isinstance(value, list) and all(fits(item, one) for item in value)
        case dict():
            return isinstance(value, dict) and all(fits(value.get(key), shape[key]) for key in shape)
    raise TypeError(shape)


class HttpApi:
    """JSON over HTTP to one server, with errors that say what was asked of whom."""

    def __init__(self, url: str, key: str, name: str) -> None:
        """`key` is sent as a bearer token; `name` is what messages call the server."""
        SECRETS.add(key)
        SECRETS.add_text(url)
        if not url.startswith(("http://", "https://")):
            raise DeployError(
                message(
                    "{url!r} is no address of {name}: it starts with http:// or https://",
                    url=shown_address(url),
                    name=name,
                )
            )
        if not _is_usable(url):
            raise DeployError(
                message(
                    "the address of {name} cannot be used: write it as http://host:8080, without user "
                    "name, password, spaces, ? and #",
                    name=name,
                )
            )
        if not re.fullmatch(r"[!-~]*", key):
            raise DeployError(
                message(
                    "the token or key for {name} has a space or another character that none has: copy it "
                    "again",
                    name=name,
                )
            )
        self.url = url.rstrip("/")
        self.key = key
        self.name = name

    def close(self) -> None:
        """Nothing is held between two requests."""

    def get(self, path: str, shape: Any = object, **params: str) -> Any:
        return self._ask("GET", path, shape, params=params)

    def post(self, path: str, body: Json | None = None, *, shape: Any = object, **params: str) -> Any:
        return self._ask("POST", path, shape, params=params, json=body)

    def delete(self, path: str, body: Json | None = None) -> Any:
        return self._ask("DELETE", path, object, json=body)

    def send_file(self, path: str, name: str, content: bytes, media_type: str = "text/x-python") -> Any:
        return self._ask("POST", path, object, files={"file": (name, content, media_type)})

    def answer(self, method: str, path: str, **request: Any) -> Answer:
        """What the server answers, whatever its status.

        Raises:
            UnreachableError: it does not, not in time, or it sends us elsewhere.
        """
        try:
            answer = fetch(method, f"{self.url}{path}", key=self.key, **request)
        except UnreachableError as error:
            raise UnreachableError(
                message(
                    "{name} does not answer at {url} ({error}): {advice}",
                    name=self.name,
                    url=self.url,
                    error=error,
                    advice=error.remedy or message("is it running, and is the address right?"),
                )
            ) from None
        if answer.redirection:  # followed, it would make a GET of a POST, or take the key to another host
            target, is_same_page = sends_on(answer, path)
            advice = (
                message("give that as {name}'s address", name=self.name)
                if is_same_page
                else login_page(self.name)
            )
            raise UnreachableError(
                message("{url} sends us on to {target}: {advice}", url=self.url, target=target, advice=advice)
            )
        return answer

    def _ask(self, method: str, path: str, shape: Any = object, **request: Any) -> Any:
        answer = self.answer(method, path, **request)
        if not answer.ok:
            detail = _detail(answer)
            raise ServerError(
                message(
                    "{name} refused {method} {path}: {status} {detail}",
                    name=self.name,
                    method=method,
                    path=plain(path),
                    status=answer.status,
                    detail=detail,
                ),
                answer.status,
                detail,
            )
        try:
            found = answer.json()
        except ValueError:
            self._refuse_answer(path)
        if not fits(found, shape):
            self._refuse_answer(path)
        return found

    def _refuse_answer(self, path: str) -> NoReturn:
        raise UnreachableError(
            message(
                "{url}{path} answers, but not as {name} does: is the address right?",
                url=self.url,
                path=plain(path),
                name=self.name,
            )
        ) from None


def _whole_row(row: Json) -> Json:
    """A row with the parts that a server may leave out or set to null."""
    return (
        row
        | {"meta": row.get("meta") or {}, "params": row.get("params") or {}}
        | {"base_model_id": row.get("base_model_id")}
    )


def _is_usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return usable and not re.search(r"[\s@?#\\]", url) and url.isprintable()


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
        SECRETS.add(password)
        guest = cls(url)
        try:
            answer = guest.post(
                "/api/v1/auths/signin", {"email": email, "password": password}, shape={"token": str}
            )
        except ServerError as error:
            if error.status >= 500:  # noqa: PLR2004 - the server's fault, not the password's
                raise
            raise DeployError(
                message(
                    "{url} does not accept this e-mail address ({email}) and password: {detail}",
                    url=guest.url,
                    email=plain(email),
                    detail=error.detail,
                )
            ) from error
        finally:
            guest.close()
        return cls(url, answer["token"])

    def require_admin(self) -> Json:
        """Return the signed-in user, who must be an admin."""
        try:
            user: Json = self.get("/api/v1/auths/", {"role": str, "email": str})
        except ServerError as error:
            if error.status not in {401, 403}:
                raise
            raise DeployError(
                message(
                    "{url} does not accept the token ({detail}): make a new one under Settings → "
                    "Account, or set OPEN_WEBUI_EMAIL and OPEN_WEBUI_PASSWORD instead",
                    url=self.url,
                    detail=error.detail,
                )
            ) from error
        if user["role"] != "admin":
            raise DeployError(
                message(
                    "{email} is signed in as {role!r}: uploading needs the token of an admin",
                    email=plain(user["email"]),
                    role=plain(user["role"]),
                )
            )
        return user

    @cached_property
    def version(self) -> str:
        return plain(self.get("/api/version", {"version": str})["version"], 40)

    def models(self, *, refresh: bool = False) -> dict[str, Json]:
        """Every model that the connections and rows offer now, by id."""
        shape = {"data": [_MODEL]}
        listed = self.get("/api/models", shape, **({"refresh": "true"} if refresh else {}))
        return {model["id"]: model for model in listed["data"]}

    def can_use_tools(self, model: str) -> bool:
        """Whether one of Ollama's models can use tools, by its own account; True where it gives none."""
        try:
            shown = self.post("/ollama/api/show", {"model": model}, shape={"capabilities": (None, [str])})
        except ServerError:
            return True
        return shown.get("capabilities") is None or "tools" in shown["capabilities"]

    def model_rows(self) -> dict[str, Json]:
        """Every row of the models table, overrides of base models included, by id."""
        listed = [*self.get("/api/v1/models/export", [_ROW]), *self.get("/api/v1/models/base", [_ROW])]
        return {row["id"]: _whole_row(row) for row in listed}

    def model_row(self, model: str) -> Json:
        """One row of the models table, with what the list leaves out."""
        row: Json = self.get("/api/v1/models/model", _ROW, id=model)
        return _whole_row(row)

    def group_ids(self) -> dict[str, str]:
        """Name → id of every group."""
        return {
            group["name"]: group["id"] for group in self.get("/api/v1/groups/", [{"name": str, "id": str}])
        }

    def plugins(self, kind: str) -> dict[str, Json]:
        """The installed `functions` or `tools`, by id, without their code."""
        return {plugin["id"]: plugin for plugin in self.get(f"/api/v1/{kind}/", _PLUGINS[kind])}

    def plugin(self, kind: str, plugin_id: str) -> Json:
        found: Json = self.get(f"/api/v1/{kind}/id/{quote(plugin_id, safe='')}", _PLUGIN)
        return found

    def valves(self, kind: str, plugin_id: str) -> Json:
        """The valves that are set; the others have their defaults."""
        path = f"/api/v1/{kind}/id/{quote(plugin_id, safe='')}/valves"
        valves: Json = self.get(path, (None, {})) or {}
        SECRETS.add_values(valves)
        return valves

    def audio(self) -> Json:
        """The settings of speech: `stt` and `tts`."""
        found: Json = self.get("/api/v1/audio/config", _AUDIO)
        SECRETS.add_values(found)
        return found


class Pipelines(HttpApi):
    """A Pipelines server."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url, key, message("the Pipelines server"))

    def installed(self) -> dict[str, Json]:
        """The loaded pipelines, by id.

        Raises:
            DeployError: the server does not accept the key.
        """
        try:
            listed = self.get("/pipelines", {"data": [{"id": str}]})["data"]
        except ServerError as error:
            if error.status not in {401, 403}:
                raise
            raise DeployError(
                message(
                    "{url} does not accept the API key ({detail}): set PIPELINES_API_KEY",
                    url=self.url,
                    detail=error.detail,
                )
            ) from error
        return {pipeline["id"]: pipeline for pipeline in listed}

    def valves(self, pipeline_id: str) -> Json:
        """The valves of a pipeline that is loaded; none where it has none."""
        try:
            found: Json = self.get(f"/{quote(pipeline_id, safe='')}/valves", {})
        except ServerError as error:
            if error.status == _NOT_FOUND:
                return {}
            raise
        SECRETS.add_values(found)
        return found


def _detail(answer: Answer) -> str:
    """The server's own words on an error, however it wraps them, as a part of one sentence."""
    try:
        body = answer.json()
    except ValueError:
        return _text(answer.body) or answer.reason
    detail = body.get("detail", body) if isinstance(body, Mapping) else body
    return plain(detail, 2000)


def _text(body: bytes) -> str:
    """The words of a page that is not JSON: those of an HTML page without its tags."""
    text = body.decode(errors="replace")
    if re.match(r"\s*<", text):
        title = re.search(r"<title[^>]*>([^<]*)</title>", text[:20_000], re.IGNORECASE)
        return plain(title[1]) if title else message("an HTML page")
    return plain(text)
