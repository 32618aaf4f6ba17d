"""Addresses, weights, keys and names of a command line are taken rightly, or refused before the first call."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.endpoint.address import base_url_of, chat_url, is_vertex, weighted_url, without_query
from pipeline.endpoint.client import EndpointAddress
from pipeline.endpoint.connection import Connection, api_key
from pipeline.faults import UsageError

RIGHT = {
    "https://example.com/v1": "https://example.com/v1/chat/completions",
    "https://example.com/v1/": "https://example.com/v1/chat/completions",
    "https://example.com": "https://example.com/chat/completions",
    "https://example.com//": "https://example.com/chat/completions",
    "  https://example.com/v1 \n": "https://example.com/v1/chat/completions",
    "\u00a0https://example.com/v1\t": "https://example.com/v1/chat/completions",
    "HTTPS://example.com/v1": "https://example.com/v1/chat/completions",
    "https://example.com/v1/chat/completions": "https://example.com/v1/chat/completions",
    "https://example.com/v1/chat/completions/": "https://example.com/v1/chat/completions",
    "https://example.com/v1/chat/completions/chat/completions": "https://example.com/v1/chat/completions",
    "https://example.com/a%2Fb/v1": "https://example.com/a%2Fb/v1/chat/completions",
    "http://[::1]:8000/v1": "http://[::1]:8000/v1/chat/completions",
    "https://example.com/openai/deployments/x?api-version=2024-10-21": (
        "https://example.com/openai/deployments/x/chat/completions?api-version=2024-10-21"
    ),
    "https://example.com/openai/deployments/x/?a=b/c&d=e": (
        "https://example.com/openai/deployments/x/chat/completions?a=b/c&d=e"
    ),
    "https://example.com/v1/chat/completions?key=AIzaCANARY": (
        "https://example.com/v1/chat/completions?key=AIzaCANARY"
    ),
}


@pytest.mark.parametrize(("text", "asked"), RIGHT.items())
def test_a_base_url_is_asked_where_its_writer_meant(text: str, asked: str) -> None:
    assert chat_url(base_url_of(text)) == asked
    assert chat_url(EndpointAddress.url(text).base_url) == asked


WRONG = [
    "",
    "example.com/v1",
    "ftp://canary.example/v1",
    "https:///v1",
    "https://",
    "https://canary.example/v1#x",
    "https://canary.example/v1#",
    "https://canary.example/v 1",
    "https://canary.example/v1\nhttps://other.example",
    "https://canary.example\\.googleapis.com",
    "https://canary.example/v1\\x",
    "https://canary.example/v1\x00",
    "https://canary.example/v1\x7f",
    "https://canary.example/v1\u200b",
    "https://canary\uff0eexample/v1",
    "https://canary.example:port/v1",
    "https://canary.example:99999/v1",
    "https://canary.example:0/v1",
    "https://[::1/v1",
    "https://canary%2eexample/v1",
    "https://user:canary@example.com/v1",
    "https://canary@example.com/v1",
    '"https://canary.example/v1"',
    "{canary}",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_base_url_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="--base-url") as refused:
        Connection(base_urls=[text])
    assert "canary" not in str(refused.value)


@given(st.text("https:/@#?%[]\\.*-_ \n~\u00e9ab1", max_size=30).map(lambda rest: f"https://a{rest}"))
def test_the_host_that_is_judged_is_the_host_that_is_asked(text: str) -> None:
    """Urlsplit decides whose token may go there, and yarl where the call goes."""
    try:
        base_url = base_url_of(text)
    except UsageError:
        return
    assert yarl.URL(chat_url(base_url)).host == urlsplit(base_url).hostname
    assert base_url_of(base_url) == base_url


@pytest.mark.parametrize(("text", "weight"), [("2*", 2.0), ("0.5*", 0.5), ("1e2*", 100.0), ("", 1.0), (" 3 * ", 3.0)])
def test_a_base_url_may_have_a_weight(text: str, weight: float) -> None:
    assert weighted_url(f"{text}https://example.com/v1") == (weight, "https://example.com/v1")


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "-1", "0", "-0", "1e-320", "1e9", "two", "", "1,5", "0x2"])
def test_a_weight_that_divides_no_work_is_refused(weight: str) -> None:
    with pytest.raises(UsageError, match="weight"):
        Connection(base_urls=[f"{weight}*https://example.com/v1", "https://other.example/v1"])


def test_a_star_within_a_url_is_no_weight() -> None:
    assert weighted_url("https://example.com/v1/*") == (1.0, "https://example.com/v1/*")


@pytest.mark.parametrize(
    "location",
    ["127.0.0.1:1234/x?", "us central1", "", "evil.test/", "US-CENTRAL1", "a@b", "a#b", "a\nb", "%2e", "a.b"],
)
def test_s5_a_location_becomes_part_of_a_host_and_is_a_plain_name(location: str) -> None:
    with pytest.raises(UsageError, match="--location"):
        Connection(project="p", locations=[location])


@pytest.mark.parametrize("project", ["../other", "a/b", "a?b", "a b", "a#b", "{}", '{"type": "service_account"}'])
def test_s5_a_project_becomes_part_of_a_path_and_is_a_plain_name(project: str) -> None:
    with pytest.raises(UsageError, match="--project") as refused:
        Connection(project=project)
    assert "service_account" not in str(refused.value)


def test_s5_an_endpoint_id_becomes_part_of_a_path_and_is_a_plain_name() -> None:
    for endpoint in ("1/2", "a b", ""):
        with pytest.raises(UsageError, match="--endpoint-id"):
            Connection(endpoint_id=endpoint)
    Connection(project="example.com:old-project\n", locations=["global", "europe-west4"], endpoint_id="4567890123")


@pytest.mark.parametrize(
    "value",
    ["sk-key", " sk-key", "sk-key\n", "\r\nsk-key\r\n", '"sk-key"', "'sk-key'", "Bearer sk-key", "bearer  sk-key\n"],
)
def test_a_key_is_taken_without_what_files_and_shells_put_around_it(value: str) -> None:
    assert api_key(value) == "sk-key"


@pytest.mark.parametrize("value", [None, "", " ", "\n", '""', "Bearer "])
def test_no_key_is_none(value: str | None) -> None:
    assert api_key(value) is None


@pytest.mark.parametrize(
    "value", ["sk-\ncanary", "sk- canary", "sk-\x00canary", "“canary”", "sk-é-canary", "a\tcanary"]
)
def test_s4_a_key_that_no_header_can_hold_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as refused:
        api_key(value)
    assert "canary" not in str(refused.value)


def test_s4_a_key_in_a_query_is_no_part_of_a_name() -> None:
    url = "https://example.com/v1?key=AIzaCANARY"
    assert without_query(url) == "https://example.com/v1"
    assert "CANARY" not in Connection(base_urls=[url]).provider
    assert "CANARY" not in EndpointAddress.url(url).label


def test_a_query_makes_no_vertex_address() -> None:
    assert not is_vertex("https://example.com/v1?x=/projects/p/locations/l")
