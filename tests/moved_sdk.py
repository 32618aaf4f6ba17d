"""Another release of the SDK, made of the one that is installed: its private hooks have other names.

Usage: python -m tests.moved_sdk FOLDER; the folder then goes first in PYTHONPATH.
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

HOOKS = (
    "_prepare_options",
    "_prepare_request",
    "_send_request",
    "_build_request",
    "custom_auth",
    "FinalRequestOptions",
)
"""What `pipeline.endpoint.client.Client` overrides or takes from the SDK beyond what is public."""


def moved(folder: Path, *hooks: str) -> Path:
    """A copy of the SDK in `folder`, in which these hooks are named otherwise wherever they are used."""
    spec = find_spec("openai")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, folder / "openai", ignore=shutil.ignore_patterns("__pycache__"))
    names = re.compile(rf"\b({'|'.join(hooks)})\b")
    renamed = set()
    for path in (folder / "openai").rglob("*.py"):
        text = path.read_text("utf-8")
        renamed.update(names.findall(text))
        path.write_text(names.sub(r"\1_moved", text), "utf-8")
    assert renamed == set(hooks), "a hook that the SDK has not cannot be moved"
    return folder


if __name__ == "__main__":
    moved(Path(sys.argv[1]), *HOOKS)
