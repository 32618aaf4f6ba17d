"""The OpenAI SDK, without the four hundred modules of types that no run uses: two thirds of what it loads.

`import openai` loads a module and builds a pydantic model for everything that any of its APIs may send. Here, a
package of types is imported without its `__init__`, which runs on the first access to one of its names: a job that
uses `openai.types` finds it complete. `importlib.util.LazyLoader` is not enough: it loads a package as soon as one of
its modules is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai._models import FinalRequestOptions as FinalRequestOptions  # noqa: PLC0414 - given out below

_TYPES = "openai.types"


class _DeferredLoader(Loader):
    """Loads a package whose `__init__` runs on access to a name that the package does not have yet."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._lock = RLock()
        self._has_begun = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def attribute(name: str) -> Any:
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            with self._lock:  # other threads wait for the whole; this one, within `__init__`, sees what exists
                if not self._has_begun:
                    self._load(module)
            try:
                return module.__dict__[name]
            except KeyError:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}") from None

        module.__dict__["__getattr__"] = attribute  # https://peps.python.org/pep-0562/

    def _load(self, module: ModuleType) -> None:
        self._has_begun, is_whole = True, False
        try:
            self._loader.exec_module(module)
            is_whole = True
        finally:
            self._has_begun = is_whole  # what was cut short is loaded again on the next access


class _DeferredFinder(MetaPathFinder):
    """Finds packages of types on the path and defers them; leaves everything else to other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TYPES and not fullname.startswith(f"{_TYPES}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
            spec.loader = _DeferredLoader(spec.loader)
        return spec


@contextmanager
def _types_deferred() -> Iterator[None]:
    finder = _DeferredFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _load() -> ModuleType:
    """The SDK. A release whose types cannot be deferred is loaded completely, which adds half a second to a start."""
    before = set(sys.modules)
    try:
        with _types_deferred():
            return import_module("openai")
    except (ImportError, AttributeError, NameError, TypeError, LookupError, ValueError, RuntimeError):
        # A name was missing where it was deferred; pydantic says so by errors of the last two kinds.
        for name in [name for name in sys.modules if name.partition(".")[0] == "openai" and name not in before]:
            del sys.modules[name]
        return import_module("openai")


_load()

from openai import APIStatusError, AsyncOpenAI, AsyncStream, OpenAIError  # noqa: E402 - `_load` has loaded it
from openai import __version__ as VERSION  # noqa: E402, N812 - a constant

__all__ = ["VERSION", "APIStatusError", "AsyncOpenAI", "AsyncStream", "OpenAIError"]


def __getattr__(name: str) -> Any:
    if name == "FinalRequestOptions":  # the public `request` takes it; in a private module, so imported on demand
        from openai._models import FinalRequestOptions

        return FinalRequestOptions
    raise AttributeError(f"module 'pipeline.endpoint.sdk' has no attribute {name!r}")
