"""Google's extensions of OpenAI's request under `extra_body.google`, and the thinking options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.emulator.protocol.wire import JsonMapping, invalid

EFFORTS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
LEVELS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 32768}
DYNAMIC_THINKING = 8192
STRICTEST = "BLOCK_LOW_AND_ABOVE"
THRESHOLDS = frozenset({"BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF", STRICTEST})

_CACHED_CONTENT = re.compile(r"projects/[^/]+/locations/[^/]+/cachedContents/[^/]+")


@dataclass(frozen=True, slots=True)
class Extensions:
    """Google's own options. `thinking_config` is None when absent."""

    thinking_config: JsonMapping | None = None
    marker: str | None = None
    fragments: bool = False
    cached: bool = False
    strict: bool = False


PLAIN = Extensions()


@dataclass(frozen=True, slots=True)
class Thinking:
    """The budget in tokens, and whether thought summaries are requested."""

    budget: int = 0
    shown: bool = False


UNTHINKING = Thinking()


def read_extensions(payload: JsonMapping) -> Extensions:
    """The extensions of a request: nested as Google documents them, or under a top-level `google`. Raises a 400."""
    extra = payload.get("extra_body")
    google = extra.get("google") if isinstance(extra, dict) else payload.get("google")
    if not isinstance(google, dict) or not google:
        return PLAIN
    config = google.get("thinking_config", google.get("thinkingConfig"))
    marker = google.get("thought_tag_marker")
    if not isinstance(config, dict | None) or not isinstance(marker, str | None):
        raise invalid("thinking_config is an object, thought_tag_marker a text.")
    return Extensions(
        thinking_config=config,
        marker=marker or None,
        fragments=google.get("stream_function_call_arguments") is True,
        cached=_read_cached(google.get("cached_content")),
        strict=_read_strict(google.get("safety_settings")),
    )


def read_thinking(effort: Any, config: JsonMapping | None) -> Thinking:
    """The thinking set by `reasoning_effort` or a thinking config. Raises a 400, also when both are given."""
    if effort is not None and config is not None:
        raise invalid("Only one of reasoning_effort and thinking_config may be set.")
    if effort is not None:
        return Thinking(_read_level("reasoning_effort", effort, EFFORTS))
    if config is None:
        return UNTHINKING
    shown = config.get("include_thoughts", config.get("includeThoughts")) is True
    return Thinking(_read_budget(config, DYNAMIC_THINKING if shown else 0), shown)


def _read_budget(config: JsonMapping, default: int) -> int:
    level = config.get("thinking_level", config.get("thinkingLevel"))
    budget = config.get("thinking_budget", config.get("thinkingBudget"))
    if level is not None and budget is not None:
        raise invalid("Only one of thinking_budget and thinking_level may be set.")
    if level is not None:
        return _read_level("thinking_level", str(level).lower(), LEVELS)
    if budget is None:
        return default
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < -1:
        raise invalid(f"thinking_budget must be a whole number of tokens, or -1, not {budget!r}.")
    return DYNAMIC_THINKING if budget == -1 else budget


def _read_level(name: str, level: Any, known: Mapping[str, int]) -> int:
    if not isinstance(level, str) or level not in known:
        raise invalid(f"{name} must be one of {', '.join(known)}, not {level!r}.")
    return known[level]


def _read_cached(name: Any) -> bool:
    if name is None:
        return False
    if not isinstance(name, str) or not _CACHED_CONTENT.fullmatch(name):
        raise invalid(f"cached_content is projects/P/locations/L/cachedContents/ID, not {name!r}.")
    return True


def _read_strict(settings: Any) -> bool:
    """Whether a setting blocks content with a low probability of harm."""
    if settings is None:
        return False
    if not isinstance(settings, list) or not all(isinstance(setting, dict) for setting in settings):
        raise invalid("safety_settings must be a list of objects.")
    for index, setting in enumerate(settings):
        if not str(setting.get("category", "")).startswith("HARM_CATEGORY_"):
            raise invalid(f"Invalid value at 'safety_settings[{index}].category': {setting.get('category')!r}")
        if str(setting.get("threshold")) not in THRESHOLDS:
            raise invalid(f"Invalid value at 'safety_settings[{index}].threshold': {setting.get('threshold')!r}")
    return any(setting["threshold"] == STRICTEST for setting in settings)
