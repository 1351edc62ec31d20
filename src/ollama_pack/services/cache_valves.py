"""The valves of the response cache, wherever it runs."""

from typing import Literal

from pydantic import Field, field_validator

from ollama_pack.base.redis import check_redis_url
from ollama_pack.cache.keyring import check_secret
from ollama_pack.services.pack_valves import PackValves


class CacheValves(PackValves):
    """What an admin sets."""

    priority: int = Field(
        default=100,
        description=(
            "Filters run from the lowest number to the highest. This one comes last: what another filter "
            "changes after it would be changed for the model, and not for the cache."
        ),
    )
    enabled: bool = Field(default=True, description="Off: every request goes to its model.")
    redis_url: str = Field(
        default="",
        description=(
            "Where all workers and replicas keep answers: redis://…, rediss://…, unix://…, "
            "redis+sentinel://… or redis+cluster://…. Empty: a SQLite file beside Open WebUI's data, for "
            "the workers of one machine."
        ),
        json_schema_extra={"input": {"type": "password"}},
    )
    ttl_seconds: int = Field(
        default=3600, ge=1, le=30 * 24 * 3600, description="How long an answer is kept, used or not."
    )
    scope: Literal["user", "group", "global"] = Field(
        default="user",
        description=(
            "Who shares answers: user (nobody), group (members of the same groups), global (everybody). "
            "What draws on files, knowledge, memory or tools stays with the user."
        ),
    )
    cache_when: Literal["always", "deterministic"] = Field(
        default="always",
        description="deterministic: only requests with temperature 0 or a seed.",
    )
    similar: Literal["off", "normalised", "semantic"] = Field(
        default="off",
        description=(
            "Whether the same question in other words gets a kept answer. off: only the same text does. "
            "normalised: width, case, punctuation, greetings and thanks may differ; the words and their "
            "order, numbers, units, negations, names, quotes and code may not. English and Chinese. "
            "semantic: also a question that means the same, by Open WebUI's own embeddings, once enough "
            "answers were compared to know that at most similar_error of them are wrong."
        ),
    )
    similar_error: float = Field(
        default=0.01,
        ge=0.001,
        le=0.2,
        description=(
            "semantic: the share of wrong answers among those given to similar questions that is allowed. "
            "0.01 takes at least 520 compared answers of a model."
        ),
    )
    max_entry_kb: int = Field(
        default=256, ge=1, le=16_384, description="A longer answer is not kept, in KiB."
    )
    secret: str = Field(
        default="",
        description=(
            "Answers are encrypted with keys made of it: 16 characters or more, the same on all "
            "replicas. Empty: made of Open WebUI's own WEBUI_SECRET_KEY. A new one empties the cache."
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
