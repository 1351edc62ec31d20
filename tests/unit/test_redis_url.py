"""The URL of a Redis: what an option does, what is refused, and that no part of a password is shown."""

import re
import traceback
from inspect import signature
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.exceptions import ResponseError

from ollama_pack.base.redis import connection_pool_of, redis_client, redis_fault
from ollama_pack.errors import SettingError

SECRET = "hunter2"


def made_with(url: str) -> dict[str, Any]:
    """What the connections of a client are made with."""
    client: Any = redis_client(url)
    pool = connection_pool_of(client)
    return dict(client.connection_kwargs if pool is None else pool.connection_kwargs)


@pytest.mark.parametrize("place", ["rediss://h/0", "rediss+sentinel://h/pack", "rediss+cluster://h"])
def test_tls_options_reach_the_connections(place: str) -> None:
    """Would catch certificates that are read for one kind of server, and forgotten for others."""
    found = made_with(f"{place}?ssl_ca_certs=%2Fetc%2Fca.pem&ssl_certfile=/c&ssl_keyfile=/k&client_name=me")
    wanted = {"ssl_ca_certs": "/etc/ca.pem", "ssl_certfile": "/c", "ssl_keyfile": "/k", "client_name": "me"}
    assert wanted.items() <= found.items()


def test_sentinels_have_their_own_user_and_the_same_tls() -> None:
    """Would catch Sentinels that are asked without the user that their ACL wants, or without TLS."""
    client: Any = redis_client(
        "rediss+sentinel://u:p@h/pack/3?sentinel_username=s&sentinel_password=%40%2F&ssl_ca_certs=/ca"
    )
    sentinel = client.clients[1].connection_pool.connection_kwargs
    assert (sentinel["username"], sentinel["password"], sentinel["ssl_ca_certs"]) == ("s", "@/", "/ca")
    master = client.connection_pool.connection_kwargs
    assert (master["username"], master["password"], master["db"]) == ("u", "p", 3)


def test_user_and_database_may_be_options() -> None:
    """Would catch a form of redis-py's URLs that is taken and then forgotten, as unix:// needs it."""
    found = made_with(f"unix:///run/redis.sock?db=2&username=u&password={SECRET}")
    assert (found["path"], found["db"], found["username"], found["password"]) == (
        *("/run/redis.sock", 2, "u"),
        SECRET,
    )


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h?decode_responses=true", "decode_responses is false here"),
        ("redis://h?protocol=3", "protocol is 2 here"),
        ("redis://h?socket_timeout=5", "socket_timeout has no effect here"),
        ("redis+cluster://h?max_connections=5", "max_connections has no effect here"),
        ("redis+sentinel://h/pack?health_check_interval=5", "health_check_interval has no effect here"),
        ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs is for TLS: begin the URL with rediss://"),
        ("redis+sentinel://h/pack?ssl_ca_certs=/x", "begin the URL with rediss\\+sentinel://"),
        ("redis://h?sentinel_password=x", "belong to redis\\+sentinel"),
        ("redis://h/1?db=2", "database twice"),
        ("redis://h/one", "the database needs a whole number"),
        ("redis+cluster://h/1", "no db but 0"),
        ("redis://a,b", "several hosts"),
        ("redis://h?db=1&db=2", "db is set twice"),
        ("rediss://h?ssl_min_version=1.1", "needs 1.2 or 1.3"),
        ("rediss://h?ssl_cert_reqs=maybe", "none, optional or required"),
        ("unix://", "path of the socket"),
    ],
)
def test_what_has_no_effect_is_refused_by_name(url: str, says: str) -> None:
    """Would catch an option that an admin sets, and that changes nothing."""
    with pytest.raises(SettingError, match=says):
        redis_client(url)


@pytest.mark.parametrize("place", ["redis{}://h", "redis{}+sentinel://h/pack", "redis{}+cluster://h"])
def test_no_option_of_redis_py_is_dropped(place: str) -> None:
    """Would catch an option of a newer redis-py that is neither honoured nor refused."""
    known = {*URL_QUERY_ARGUMENT_PARSERS, *_parameters(Redis), *_parameters(RedisCluster)}
    for name in sorted(known - {"self", "kwargs"}):
        for tls in ("", "s") if name.startswith("ssl") else ("",):
            value = {"ssl_cert_reqs": "none", "ssl_min_version": "1.3"}.get(name, "1")
            url = f"{place.format(tls)}?{name}={value}"
            said = refusal(url)
            assert name in said or "not known" in said if said else name in made_with(url), url


def refusal(url: str) -> str:
    """Why a URL cannot be used; empty: it can."""
    try:
        redis_client(url)
    except SettingError as error:
        return str(error)
    return ""


def _parameters(kind: type) -> set[str]:
    return set(signature(kind.__init__).parameters)  # type: ignore[misc]


@pytest.mark.parametrize(
    "odd", [f"{SECRET}{sign}{SECRET}" for sign in "@#/?:[]%&=+ \\\n"] + [SECRET, "12345"]
)
@pytest.mark.parametrize(
    "form",
    [
        *("redis://:{}@h:6379/0", "redis://u:{}@h", "redis://:{}", "redis://h:{}/0", "redis://h/{}"),
        *(
            "redis://h?{}",
            "redis://h?{}=1",
            "redis://h?db={}",
            "{}",
            "{}://h",
            "u:{}@h",
            "redis:{}@h",
            "{}@h:1",
        ),
        *("redis+sentinel://:{}@h", "redis+sentinel://h/pack?sentinel_password={}&nonsense=1"),
        *("rediss+cluster://:{}@h:none", "rediss://h?ssl_password={}&db=x", "http://:{}@h"),
    ],
)
def test_no_part_of_a_password_is_shown(form: str, odd: str) -> None:
    """Would catch half a password in a valve's error, or in the log, where it was not escaped."""
    try:
        redis_client(form.format(odd))
    except SettingError as error:
        shown = "".join(traceback.format_exception(error, limit=0)) + str(error)
        assert not re.search(f"{SECRET}|12345", shown), shown


@pytest.mark.parametrize("sign", "@#/?")
def test_unescaped_password_is_refused_and_not_sent_elsewhere(sign: str) -> None:
    """Would catch a piece of a password that is looked up as the name of a host."""
    for form in ("redis://:{}@h:6379/0", "redis+sentinel://u:{}@h/pack", "redis+cluster://:{}@h"):
        with pytest.raises(SettingError, match="in a password, @ is written as %40"):
            redis_client(form.format(f"{SECRET}{sign}{SECRET}"))


def test_server_that_repeats_what_it_was_sent_is_not_quoted() -> None:
    """Would catch the password in the log, where something else than Redis 6 answers to AUTH."""
    said = ResponseError(f"unknown command `AUTH`, with args beginning with: `u` `{SECRET}` ")
    assert redis_fault(said) == "ResponseError: unknown command `AUTH`"
