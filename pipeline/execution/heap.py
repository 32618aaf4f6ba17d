"""How the C library allocates: what an hour of small batches in several threads leaves of memory."""

from __future__ import annotations

from contextlib import suppress

_M_ARENA_MAX = -8
"""https://man7.org/linux/man-pages/man3/mallopt.3.html"""


def use_one_heap() -> None:
    """Makes all threads allocate from one heap. Called before they start; does nothing where glibc is not in use.

    By default, glibc gives each thread a heap of its own, and what one thread has freed no other can use: the threads
    that seal parts and commit the journal would each keep the most that they ever held.
    """
    import ctypes

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
