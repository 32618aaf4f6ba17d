"""The names of batch jobs, the keys of their lines, and their one model: what every family asks for."""

from __future__ import annotations

import re

from pipeline.data import Request
from pipeline.faults import InvalidRow

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KEY = re.compile(r"[a-z0-9_-]{1,63}")
"""The value of a label: https://cloud.google.com/vertex-ai/docs/start/labels."""


def require_name(name: str) -> None:
    """Raises `ValueError` for a name that cannot be part of a filter, an object's key or a file's name."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"a batch cannot have the name {name!r}")


def require_key(key: str) -> None:
    """Raises `InvalidRow` for a key that no label can have."""
    if not _KEY.fullmatch(key):
        raise InvalidRow(f"a row of a batch cannot have the key {key!r}")


def require_model(request: Request, model: str) -> None:
    """Raises `InvalidRow` for a request to another model than that of its batch."""
    asked = request.payload.get("model", model)
    if asked != model:
        raise InvalidRow(
            f"the row asks the model {str(asked)[:100]!r}, and the batch asks {model}: give one with --model"
        )
