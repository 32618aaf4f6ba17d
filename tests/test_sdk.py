"""The SDK is loaded without the types that nobody asks for, and whoever asks for them finds them whole."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

NAMES = """
import importlib, json, pkgutil, sys
import {first}
import openai, openai.types
def names(package):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if found.ispkg:
            yield from names(importlib.import_module(found.name))
    public = getattr(package, "__all__", None)
    exec(f"from {{package.__name__}} import *", {{}})
    package.an_odd_name if hasattr(package, "an_odd_name") else None
    yield package.__name__, sorted(name for name in dir(package) if not name.startswith("_"))
print(json.dumps(dict(names(openai.types))))
"""


def said(program: str) -> str:
    """What a new interpreter prints that runs this."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def loaded(program: str) -> set[str]:
    """The modules that a new interpreter has loaded when it has run this."""
    return set(json.loads(said(f"{program}; import json, sys; print(json.dumps(list(sys.modules)))")))


def test_a_client_is_made_without_the_types_of_other_apis() -> None:
    modules = loaded("from pipeline.endpoint.sdk import AsyncOpenAI; AsyncOpenAI(api_key='x')")
    assert "openai" in modules
    assert len([name for name in modules if name.startswith("openai.")]) < 200
    assert not [name for name in modules if "eval_create_params" in name or "response_stream_event" in name]


@pytest.mark.soak
def test_every_package_of_types_has_the_names_that_it_has_without_us() -> None:
    ours, theirs = said(NAMES.format(first="pipeline.endpoint.sdk")), said(NAMES.format(first="openai"))
    assert json.loads(ours) == json.loads(theirs)


@pytest.mark.parametrize(
    "use",
    [
        "from openai.types import Embedding",
        "from openai.types.chat import ChatCompletion, ChatCompletionMessageParam",
        "import openai; openai.types.responses.Response",
        "import openai; openai.types.chat.chat_completion.ChatCompletion",
        "import openai; openai.AsyncOpenAI(api_key='x').chat.completions; openai.pydantic_function_tool",
        "from openai.types.shared_params import *; FunctionDefinition",
    ],
)
def test_a_job_may_use_types_however_it_asks_for_them(use: str) -> None:
    assert said(f"import pipeline.endpoint.sdk; exec({use!r}); print('done')") == "done\n"


def test_several_threads_that_ask_at_once_all_find_a_package_whole() -> None:
    program = """
import pipeline.endpoint.sdk, openai, threading
found, start = [], threading.Barrier(8)
def ask():
    start.wait()
    found.append((openai.types.Embedding, openai.types.responses.Response))
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(len(found), len(set(found)))
"""
    assert said(program) == "8 1\n"


def test_a_name_that_no_package_has_is_an_attribute_error() -> None:
    told = said(
        "import pipeline.endpoint.sdk, openai\n"
        "print(hasattr(openai.types, 'Nothing'), hasattr(openai.types, '__odd__'))"
    )
    assert told == "False False\n"
