"""What can be set, and where the emulator was reached: plain values, of the standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

FAULT_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "400": "INVALID_ARGUMENT",
        "401": "UNAUTHENTICATED, as if the token had expired",
        "403": "PERMISSION_DENIED",
        "404": "NOT_FOUND, as if the model did not exist",
        "408": "request time-out, an HTML page of the front end",
        "413": "request too large, an HTML page of the front end",
        "429": "RESOURCE_EXHAUSTED",
        "499": "CANCELLED",
        "500": "INTERNAL",
        "502": "bad gateway, an HTML page of the front end",
        "503": "UNAVAILABLE",
        "504": "DEADLINE_EXCEEDED",
        "drop": "the connection is closed without an answer",
        "partial": "the connection is closed in mid-body",
        "hang": "no answer, until the client leaves",
        "html200": "status 200 with an HTML page",
        "list200": "status 200 with a list-wrapped error",
        "truncated": "status 200 with JSON that breaks off",
        "empty": "status 200 with an empty body",
        "no_choices": "a completion without `choices`",
        "empty_choices": "a completion with `choices: []`",
        "no_message": "a choice without `message`",
        "length": "finish_reason `length` and no content: thinking ate the tokens",
        "content_filter": "finish_reason `content_filter` and null content",
        "blocked": "the prompt is blocked, in one of its three forms",
        "fenced": "the answer inside a Markdown fence",
        "invalid_json": "an answer that is no JSON",
        "wrong_schema": "an answer that is JSON, but not the schema's",
        "big_signature": "a thought signature of 10 kB",
        "no_usage": "a completion without `usage`",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the emulator behaves. Times are in seconds, shares between 0 and 1.

    `latency` is the time of every answer, or its median when `latency_sigma` (of a log-normal) is above 0.
    `quota_rps` refills a bucket that holds one second's worth and starts full; an empty bucket answers 429.
    `faults` maps a kind to its share of the requests; `poison` maps a text to the kind that every prompt with this
    text gets, forever. `retry_after` is sent as it is with 429 and 503; `retry_info` goes into the body of a 429.
    `models` are shell patterns; another model is answered 404. Raises `ValueError` for values out of range.
    """

    port: int = 0
    project: str = "emulated-project"
    latency: float = 0.0
    latency_sigma: float = 0.0
    quota_rps: float | None = None
    quota_in_flight: int | None = None
    token_life: float = 3600.0
    faults: Mapping[str, float] = field(default_factory=dict)
    poison: Mapping[str, str] = field(default_factory=dict)
    retry_after: str | None = None
    retry_info: float | None = None
    error_style: Literal["list", "object"] = "list"
    models: tuple[str, ...] = ("google/gemini-*",)
    seed: int = 0
    directory: Path | None = None

    def __post_init__(self) -> None:
        for kind in (*self.faults, *self.poison.values()):
            check_kind(kind)
        if any(not 0 <= share <= 1 for share in self.faults.values()) or sum(self.faults.values()) > 1 + 1e-9:
            raise ValueError(f"faults: shares lie between 0 and 1 and add up to 1 at most, not {dict(self.faults)}")
        if self.latency < 0 or self.latency_sigma < 0:
            raise ValueError("latency and latency_sigma cannot be negative")
        if self.token_life <= 0:
            raise ValueError("token_life must be above 0 seconds")
        if self.quota_rps is not None and self.quota_rps <= 0:
            raise ValueError("quota_rps must be above 0; leave it out for no quota")
        if self.quota_in_flight is not None and self.quota_in_flight < 0:
            raise ValueError("quota_in_flight cannot be negative")
        self._check_answers()

    def _check_answers(self) -> None:
        if self.error_style not in {"list", "object"}:
            raise ValueError(f"error_style is 'list' or 'object', not {self.error_style!r}")
        if not isinstance(self.retry_after, str | None):
            raise ValueError(f"retry_after is the text of a header, such as '5', not {self.retry_after!r}")  # noqa: TRY004 (all options: one error)
        if self.retry_info is not None and self.retry_info < 0:
            raise ValueError("retry_info cannot be negative")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError("seed is a whole number of 64 bits")
        if not all(isinstance(text, str) for text in (*self.models, *self.poison)):
            raise ValueError("models and poison are texts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a running emulator is reached, and the credentials that it accepts."""

    base_url: str
    origin: str
    token_uri: str
    metadata_host: str
    stats_url: str
    credentials_file: str
    authorized_user_file: str
    project: str

    def as_dict(self) -> dict[str, Any]:
        """Every field by its name, ready for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def environment(self) -> dict[str, str]:
        """Variables for a process that shall take its tokens from the emulated metadata server.

        They must be set before google-auth is imported, with GOOGLE_APPLICATION_CREDENTIALS unset and no gcloud
        login in CLOUDSDK_CONFIG, since both come first. NO_PROXY keeps a configured proxy out of the way.
        """
        return {
            "GCE_METADATA_HOST": self.metadata_host,
            "GCE_METADATA_IP": self.metadata_host,
            "GOOGLE_CLOUD_PROJECT": self.project,
            "NO_PROXY": "127.0.0.1,localhost",
        }


def check_kind(kind: str) -> str:
    """The kind, when it is one of `FAULT_KINDS`; raises `ValueError` with the list of them otherwise."""
    if kind not in FAULT_KINDS:
        raise ValueError(f"unknown fault kind {kind!r}; known kinds: {', '.join(FAULT_KINDS)}")
    return kind


def parse_fault(text: str) -> tuple[str, float]:
    """`"503=0.1"` as `("503", 0.1)`. Raises `ValueError` for an unknown kind or a share outside 0 to 1."""
    kind, _, share = text.partition("=")
    check_kind(kind.strip())
    try:
        number = float(share)
    except ValueError:
        raise ValueError(f"a fault is written KIND=SHARE, as in 503=0.1, not {text!r}") from None
    if not 0 <= number <= 1:
        raise ValueError(f"the share of a fault lies between 0 and 1, not {share.strip()}")
    return kind.strip(), number


def parse_poison(text: str) -> tuple[str, str]:
    """`"row 17=500"` as `("row 17", "500")`: the last `=` separates. Raises `ValueError` for an unknown kind."""
    needle, separator, kind = text.rpartition("=")
    if not separator or not needle:
        raise ValueError(f"poison is written TEXT=KIND, as in 'row 17=500', not {text!r}")
    return needle, check_kind(kind.strip())
