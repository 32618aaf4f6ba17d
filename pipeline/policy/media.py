"""Loads media last of all, so that bytes are held for no more rows than are in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyio import to_thread

from pipeline.data import Ask, Reply, Request
from pipeline.job.attachments import INLINE_LIMIT, Attachment, load


def attaching(ask: Ask, root: Path | None) -> Ask:
    """Ask, with the attachments of the messages loaded and encoded, in a thread."""

    async def attaching_ask(request: Request) -> Reply:
        if not any(isinstance(message.get("content"), list) for message in request.payload["messages"]):
            return await ask(request)
        messages = await to_thread.run_sync(attached, request.payload["messages"], root)
        return await ask(replace(request, payload={**request.payload, "messages": messages}))

    return attaching_ask


def attached(messages: Sequence[Mapping[str, Any]], root: Path | None) -> list[Mapping[str, Any]]:
    """The messages, with attachments replaced by their content; the size limit covers all of them together.

    Blocking: call it in a thread. Raises `InvalidRow` as `load` does.
    """
    budget = INLINE_LIMIT
    whole: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                loaded = load(part, root, budget) if isinstance(part, Attachment) else part
                budget -= _size(loaded) if isinstance(part, Attachment) else 0
                parts.append(loaded)
            message = {**message, "content": parts}  # noqa: PLW2901 - the same message, loaded
        whole.append(message)
    return whole


def _size(part: Mapping[str, Any]) -> int:
    return len(part["input_audio"]["data"] if part["type"] == "input_audio" else part["image_url"]["url"])
