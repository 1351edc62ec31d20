"""The valves of the response cache, wherever it runs."""

from typing import Literal

from pydantic import Field, field_validator

from ollama_pack.base.redis import check_redis_url
from ollama_pack.cache.keyring import check_secret
from ollama_pack.services.valves import PackValves


class CacheValves(PackValves):
    """What an admin sets."""

    priority: int = Field(
        default=100,
        title="Priority",
        description=(
            "Filters run in order of this number, lowest first. The cache should run last, so that it "
            "sees what the other filters changed. Default: 100."
        ),
    )
    enabled: bool = Field(
        default=True, title="Enabled", description="Off: every request goes to its model. Default: on."
    )
    redis_url: str = Field(
        default="",
        title="Redis address",
        description=(
            "Where all workers and replicas keep answers: `redis://…`, `rediss://…`, `unix://…`, "
            "`redis+sentinel://…` or `redis+cluster://…`. Default: empty, which means a SQLite file in "
            "Open WebUI's data folder, shared by the workers of one machine."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )
    ttl_seconds: int = Field(
        default=3600,
        ge=1,
        le=30 * 24 * 3600,
        title="Time to live, seconds",
        description="How long an answer is kept, in seconds. Default: 3600 (one hour).",
    )
    scope: Literal["user", "group", "global"] = Field(
        default="user",
        title="Who shares answers",
        description=(
            "`user`: nobody shares. `group`: members of the same groups share. `global`: everybody "
            "shares. Answers that use files, knowledge, memory or tools always stay with their user. "
            "Default: `user`."
        ),
    )
    cache_when: Literal["always", "deterministic"] = Field(
        default="always",
        title="What is cached",
        description=(
            "`always`: every request. `deterministic`: only requests with temperature 0 or a seed. "
            "Default: `always`."
        ),
    )
    similar: Literal["off", "normalised", "semantic"] = Field(
        default="off",
        title="Similar questions",
        description=(
            "Whether the same question in other words gets a kept answer. `off`: only the same text does. "
            "`normalised`: width, case, punctuation, greetings and thanks may differ; the words and their "
            "order, numbers, units, negations, names, quotes and code may not. English and Chinese. "
            "`semantic`: also a question that means the same, by embeddings, once enough "
            "answers were compared to know that at most `similar_error` of them are wrong. Default: `off`."
        ),
    )
    similar_error: float = Field(
        default=0.01,
        ge=0.001,
        le=0.2,
        title="Error limit of similar answers, share",
        description=(
            "For `semantic`: the allowed share of wrong answers among those given to similar questions. "
            "0.01 needs at least 330 compared answers of a model. Default: 0.01."
        ),
    )
    max_entry_kb: int = Field(
        default=256,
        ge=1,
        le=16_384,
        title="Largest answer, KiB",
        description="Longer answers are not kept. In KiB. Default: 256.",
    )
    secret: str = Field(
        default="",
        title="Encryption secret",
        description=(
            "Answers are encrypted with keys derived from this text. Use 16 characters or more, the same "
            "on all replicas. A new secret empties the cache. Default: empty, which means Open WebUI's "
            "own `WEBUI_SECRET_KEY`."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, url: str) -> str:
        return check_redis_url(url)  # a SettingError reaches the admin as the valve's error

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: str) -> str:
        return check_secret(secret)
