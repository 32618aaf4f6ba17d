"""Renders the messages of a request for people, with every character as it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.cli.tables import short

if TYPE_CHECKING:
    from pipeline.data import Row
    from pipeline.job.job import Job


def messages_of(job: Job, row: Row) -> str:
    """The request for a row: each message below its role. Raises `InvalidRow` when the row cannot be asked."""
    messages = job.request(row).payload["messages"]
    return "\n".join(f"[{message['role']}]\n{readable(message.get('content'))}" for message in messages)


def readable(content: Any) -> str:
    """A message's content: text as it is, attachments by name, each part on its own lines."""
    from pipeline.job.attachments import Attachment

    if not isinstance(content, list):
        return "" if content is None else str(content)
    pieces = []
    for part in content:
        if isinstance(part, Attachment):
            value = part.value if isinstance(part.value, str) else f"{len(part.value)} bytes"
            pieces.append(f"<{part.kind}: {short(value, 80)}>")
        else:
            pieces.append(str(part.get("text", part)) if isinstance(part, dict) else str(part))
    return "\n".join(pieces)
