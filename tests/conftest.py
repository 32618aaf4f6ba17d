"""What every test may use, and the last word on the matrix of faults."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests.matrix import TESTS, proof_of, proofs_in, unproven

# A shared machine may be slow at any moment; what a test claims is never how fast it is.
hypothesis.settings.register_profile("steady", deadline=None, max_examples=50)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def _no_rates_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs keep the rates that they were granted beside the user's own, unless they are told of another place."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, unless a test asks for virtual time (see `tests.virtual`)."""
    return "asyncio"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Ids without addresses: every worker must find the same tests."""
    return f"{argname}-{type(val).__name__}" if " at 0x" in repr(val) else None


def pytest_configure(config: pytest.Config) -> None:
    # The workers of pytest-xdist hand their reports to the process that started them, which alone has seen all.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(MatrixVerdict())


class MatrixVerdict:
    """Fails the session when all tests of a line of the matrix were run and none has passed: skipped is not proven."""

    def __init__(self) -> None:
        self._ended: dict[str, set[str]] = {}
        self._unproven: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._ended.setdefault(proof_of(report.nodeid), set()).add(report.outcome)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._unproven = unproven(proofs_in(TESTS), self._ended)
        if self._unproven and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for number in self._unproven:
            told = f"{number} of tests/faults.md is not proven: no test of it has passed"
            terminalreporter.write_line(told, red=True)
