"""A user without a home: a container that runs under a number which no passwd file knows, and without HOME."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from pipeline.endpoint.credentials import find_credentials
from pipeline.faults import UsageError
from pipeline.storage.rate_memory import state_file


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system's answers for a user that it does not know."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_STATE_HOME", "CLOUDSDK_CONFIG", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("homeless")
def test_p12_without_a_home_the_rates_are_kept_in_the_run_folder_alone() -> None:
    assert state_file("job", "google/m", ["a"]) is None


@pytest.mark.usefixtures("homeless")
def test_p12_without_a_home_missing_credentials_are_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"no usable Google credentials: .* or pass --credentials"):
        find_credentials()
