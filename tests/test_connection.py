"""Whose secret goes where: a Google token to Google, a key to the server that was named, and nothing anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.endpoint.connection import Connection, access
from pipeline.faults import UsageError

VERTEX = "/v1/projects/p/locations/l/endpoints/openapi"
USER = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}

STRANGERS = [
    "https://example.com/v1",
    "https://aiplatform.googleapis.com.example.com/v1",
    "https://example.com/aiplatform.googleapis.com/v1",
    "https://googleapis.com.example/v1",
    "https://notgoogleapis.com/v1",
    "http://aiplatform.googleapis.com/v1",
    f"http://example.com{VERTEX}",
    "http://127.0.0.1.example.com/v1",
    "http://localhost.example.com/v1",
]
GOOGLES = ["https://aiplatform.googleapis.com/v1", f"https://us-central1-aiplatform.googleapis.com{VERTEX}"]


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Google credentials, where google-auth finds them by itself; and no key."""
    path = tmp_path / "user.json"
    path.write_text(json.dumps(USER))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return path


@pytest.mark.parametrize("url", STRANGERS)
def test_s5_google_credentials_that_lie_about_are_not_for_a_stranger(url: str) -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        access(Connection(base_urls=[url]))


@pytest.mark.parametrize("url", STRANGERS)
def test_s5_a_stranger_gets_the_key_that_was_set_for_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    found = access(Connection(base_urls=[url]))
    assert (found.api_key, found.credentials) == ("sk-theirs", None)


@pytest.mark.parametrize("url", GOOGLES)
def test_s5_google_gets_a_google_token_and_never_the_key_of_another_server(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    found = access(Connection(base_urls=[url]))
    assert found.api_key is None
    assert found.credentials is not None


@pytest.mark.parametrize("stranger", STRANGERS)
def test_s5_one_stranger_among_several_servers_keeps_the_token_at_home(stranger: str) -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        access(Connection(base_urls=[*GOOGLES, stranger]))


@pytest.mark.parametrize("stranger", STRANGERS)
def test_s5_a_key_is_not_sent_to_google_because_a_stranger_shares_the_work(
    stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    with pytest.raises(UsageError, match="--credentials"):
        access(Connection(base_urls=[*GOOGLES, stranger]))


def test_s5_credentials_that_are_named_go_where_the_command_says(credentials: Path) -> None:
    """A gateway that passes Google's tokens on is named together with them."""
    found = access(Connection(base_urls=["https://gateway.example.com/v1"], credentials=credentials))
    assert found.api_key is None
    assert found.credentials is not None


@pytest.mark.parametrize("url", ["https://user:secret@example.com/v1", "https://secret@aiplatform.googleapis.com/v1"])
def test_s5_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        Connection(base_urls=[url])
    assert "secret" not in str(refused.value)
