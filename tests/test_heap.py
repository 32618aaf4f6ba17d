"""Threads share one heap, so that what one of them has freed another can use."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from pipeline.execution.heap import use_one_heap
if sys.argv[1] == "one":
    use_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def hold():
    libc.malloc(ctypes.c_size_t(1000))
for _ in range(3):
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas to limit")
@pytest.mark.parametrize(("wanted", "is_one"), [("one", True), ("the default", False)])
def test_threads_allocate_from_one_heap(wanted: str, is_one: bool) -> None:  # noqa: FBT001 - a case
    done = subprocess.run([sys.executable, "-c", PROGRAM, wanted], capture_output=True, text=True, check=True)
    assert (done.stderr.count("Arena ") == 1) == is_one


def test_a_c_library_without_the_setting_is_left_as_it_is() -> None:
    """As musl and macOS, which have no `mallopt`. Where there is none, the call fails and nothing else does."""
    program = (
        "import ctypes\n"
        "from pipeline.execution.heap import use_one_heap\n"
        "ctypes.CDLL = lambda name: object()\n"
        "use_one_heap()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
