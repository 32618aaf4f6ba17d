"""The emulator as a process beside a run, which is then simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.endpoint.connection import Connection
from pipeline.execution.options import CallOptions
from pipeline.faults import UsageError


def simulation_of(options: CallOptions) -> list[str] | None:
    """The emulator's arguments; None without `emulate`. Raises `UsageError` if they are invalid or without it."""
    from pipeline.emulator import parse_fault, parse_field_error

    try:
        arguments = ["--fault={}={}".format(*parse_fault(text)) for text in options.fault or ()]
        arguments += ["--field-error={}={}".format(*parse_field_error(text)) for text in options.field_error or ()]
    except ValueError as error:
        raise UsageError(str(error)) from None
    arguments += [f"--latency={options.latency}"] if options.latency else []
    arguments += [f"--quota-rps={options.quota_rps}"] if options.quota_rps else []
    arguments += [f"--token-lifetime={options.token_lifetime}"] if options.token_lifetime != 3600.0 else []
    if arguments and not options.emulate:
        raise UsageError(f"{arguments[0]} belongs to --emulate")
    # The variable stands for all runs, and --emulate overrides it; the option is given for this one.
    if options.emulate and options.base_url and options.base_url != os.environ.get("OPENAI_BASE_URL", "").split():
        raise UsageError("--emulate starts a server of its own, and --base-url names another: leave one of them out")
    return arguments if options.emulate else None


@contextmanager
def emulator(arguments: list[str]) -> Iterator[dict[str, str]]:
    """Runs an emulator in its own process until the block ends (or this process does); yields its address."""
    command = [sys.executable, "-P", "-m", "pipeline", "emulate", "--json", "--until-stdin-closes", *arguments]
    # Its own session: Ctrl-C stops the run, which still needs the emulator to drain.
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the emulator has no pipes")
        line = child.stdout.readline()
        if not line:
            raise UsageError("the emulator did not start; see its message above")
        yield json.loads(line)
        child.stdin.close()


def connection_to(address: dict[str, str], locations: Sequence[str]) -> Connection:
    """The connection to an emulator, with one endpoint per location, as on Vertex AI."""
    base_urls = [address["base_url"].replace("/locations/global/", f"/locations/{location}/") for location in locations]
    return Connection(base_urls=base_urls, credentials=Path(address["credentials_file"]))
