"""Texts for regular expressions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.emulator.answers.patterns import fitting
from pipeline.emulator.answers.seeded import Dice

PATTERNS = [
    r"^[A-Z]{2}-\d{3,5}$",
    r"^(?:red|green|blue)$",
    r"^\d{4}-\d{2}$",
    r"[a-f0-9]{8}",
    r"^\w+@\w+\.(com|org)$",
    r"^[^abc]x?y*z+$",
    r"^(?=a).b$|^cd$",
    r"^\+?[1-9]\d{1,14}$",
    r"^(?P<name>ab)+\.$",
    r"^$",
    r"^[\w.-]+/[^/]+$",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.binary(max_size=4))
def test_what_is_made_fits(pattern: str, seed: bytes) -> None:
    """The patterns that schemas use are all hit."""
    made = fitting(pattern, Dice(seed))
    assert made is not None
    assert re.search(pattern, made)


@given(pattern=st.text(alphabet="ab^$.*+?{}[]()|\\d,-1:=!<>P", max_size=15))
def test_no_pattern_breaks_the_maker(pattern: str) -> None:
    """Any text is either a pattern that is met, or given up."""
    made = fitting(pattern, Dice(b"seed"))
    assert made is None or re.search(pattern, made)
