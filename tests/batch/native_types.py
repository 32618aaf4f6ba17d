"""Native requests and responses as Google's own SDK understands them: an independent reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

LISTS = ("contents", "tools", "safetySettings")


def validate(request: Mapping[str, Any]) -> None:
    """Raises for a field or a value that google-genai does not know. Skips the test without that library."""
    types = pytest.importorskip("google.genai.types")
    kinds: dict[str, Any] = {
        "contents": types.Content,
        "systemInstruction": types.Content,
        "tools": types.Tool,
        "toolConfig": types.ToolConfig,
        "generationConfig": types.GenerationConfig,
        "safetySettings": types.SafetySetting,
    }
    plain: dict[str, type] = {"cachedContent": str, "labels": dict}
    for name, value in request.items():
        if name in plain:
            assert isinstance(value, plain[name])
            continue
        kind = kinds[name]
        for each in value if name in LISTS else [value]:
            kind.model_validate(each)
