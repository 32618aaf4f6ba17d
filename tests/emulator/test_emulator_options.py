"""Options and their written forms."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pipeline.emulator import FAULT_KINDS, Options, parse_fault, parse_field_error, parse_poison, parse_schedule


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_every_kind_of_fault_can_be_written(kind: str) -> None:
    """KIND=SHARE for a share, TEXT=KIND for poison."""
    assert parse_fault(f"{kind}=0.25") == (kind, 0.25)
    assert parse_poison(f"a=b={kind}") == ("a=b", kind)


@pytest.mark.parametrize("text", ["", "503", "503=", "503=x", "503=1.5", "503=-1", "teapot=0.1", "=0.1", "503=nan"])
def test_a_fault_that_cannot_be_read_is_refused(text: str) -> None:
    """Unknown kinds and shares outside 0 to 1."""
    with pytest.raises(ValueError, match=r"known kinds|KIND=SHARE|between 0 and 1"):
        parse_fault(text)


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    """The message helps the one who mistyped."""
    with pytest.raises(ValueError, match=r"known kinds: 400, .*hang, .*no_usage"):
        parse_fault("5O3=0.1")


@pytest.mark.parametrize("text", ["", "500", "=500", "text=", "text=teapot"])
def test_poison_that_cannot_be_read_is_refused(text: str) -> None:
    """Poison needs a text and a known kind."""
    with pytest.raises(ValueError, match=r"known kinds|TEXT=KIND"):
        parse_poison(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"faults": {"503": 0.6, "500": 0.6}},
        {"faults": {"503": -0.1}},
        {"faults": {"teapot": 0.1}},
        {"poison": {"x": "teapot"}},
        {"latency": -1.0},
        {"token_life": 0.0},
        {"quota_rps": 0.0},
        {"quota_in_flight": -1},
        {"error_style": "html"},
        {"retry_after": 5},
        {"retry_info": -1.0},
        {"seed": 2**63},
        {"models": (3,)},
        {"quota_window_s": 0.0},
        {"capacity_schedule": ((5.0, 1.0), (2.0, 1.0))},
        {"capacity_schedule": ((0.0, -1.0),)},
        {"down_locations": (3,)},
        {"location_latency": {"global": -1.0}},
        {"field_errors": {"date": 1.5}},
        {"field_errors": {"lines..quantity": 0.5}},
        {"nonce": 1},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """No emulator starts with options that mean nothing."""
    with pytest.raises(ValueError, match=r"\w"):
        Options(**wrong)


def test_schedules_and_field_errors_can_be_written() -> None:
    """SECONDS:RPS in a row, FIELD=SHARE."""
    assert parse_schedule("0:100,20:200.5,40:0") == ((0, 100), (20, 200.5), (40, 0))
    assert parse_field_error("lines.quantity=0.1") == ("lines.quantity", 0.1)


@pytest.mark.parametrize("text", ["", "5", "0:1:2", "0:x", "10:1,5:1", "0:-1", "-1:5", "0:1,0:2", "0:nan", "inf:1"])
def test_a_schedule_that_cannot_be_read_is_refused(text: str) -> None:
    """Times ascend, rates are not negative, and all are finite."""
    with pytest.raises(ValueError, match=r"SECONDS:RPS|ascending"):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["", "date", "date=", "date=2", "=0.1", "a..b=0.1", "date=nan"])
def test_a_field_error_that_cannot_be_read_is_refused(text: str) -> None:
    """A path of names and a share."""
    with pytest.raises(ValueError, match=r"FIELD=SHARE|NAME|between 0 and 1"):
        parse_field_error(text)


def test_importing_the_package_loads_no_server() -> None:
    """The command line can name the emulator without paying for it."""
    heavy = "{'aiohttp', 'cryptography', 'asyncio', 'orjson', 'google'}"
    code = f"import sys, pipeline.emulator; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
