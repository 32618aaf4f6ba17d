"""The wall clock jumps while a run is at work, as a server of time, a person or a virtual machine makes it jump."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from pipeline.emulator.options import Options
from pipeline.emulator.vertex import emulated
from tests.commands import JOB, Shell, ended

ROWS = 400
HOUR = 3600
YEAR = 365 * 24 * HOUR

SHIFTED_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long long *shift;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("SHIFT"), O_RDONLY);
    shift = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += *shift;
    return failed;
}

time_t time(time_t *told) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told) *told = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *told, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    told->tv_sec = now.tv_sec;
    told->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Commands in it live by a wall clock of their own, which is shifted by what is in the file `shift`."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    (tmp_path / "clock.c").write_text(SHIFTED_CLOCK)
    library, shift = tmp_path / "clock.so", tmp_path / "shift"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    shift.write_bytes(struct.pack("q", 0))
    shell = Shell(tmp_path, {"LD_PRELOAD": str(library), "SHIFT": str(shift)})
    shell.write("job.py", JOB)
    shell.rows(ROWS)
    return shell


@pytest.mark.parametrize(
    ("answers", "refetched"), [(8, 0), (0, 4)], ids=["between two refreshes", "while a token is fetched"]
)
def test_p9_jumps_of_the_wall_clock_cost_no_row_no_401_and_no_refresh(
    answers: int, refetched: int, shell: Shell
) -> None:
    """By an hour and by a year, there and back, while tokens are announced to live for three seconds.

    A token that is on its way when the clock jumps is fetched again: nobody can say how long it lives.
    """
    # Announced as 3 s, renewed after 2.4, honoured for 3.99: a machine that stands still for 1.5 s costs no 401.
    options = Options(latency=0.13, token_life=3.99)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(emulated(options)) as vertex:
        shell = replace(shell, variables={**shell.variables, **vertex.address.environment(), "NO_GCE_CHECK": "false"})
        flags = ("--base-url", vertex.address.base_url, "--no-adaptive", "-c", "4", "--quiet", "--json")
        with shell.started("run", "job.py", *flags) as child:
            for refreshes, shift in enumerate((HOUR, -HOUR, YEAR, 0), 1):
                # With so many answers since it was issued, the token has arrived: four calls are in flight.
                known = portal.call(vertex.stats)["requests"]
                while portal.call(vertex.stats)["requests"] < known + answers:
                    assert child.poll() is None, ended(child)
                    portal.call(anyio.sleep, 0.02)
                with (shell.folder / "shift").open("r+b") as file:
                    file.write(struct.pack("q", shift))
                # A token that was got before the jump ends after it.
                while portal.call(vertex.stats)["token_refreshes"] <= refreshes:
                    assert child.poll() is None, ended(child)
                    portal.call(anyio.sleep, 0.02)
            done = ended(child)
        counted = portal.call(vertex.stats)
    expected = {"status": "complete", "ok": ROWS, "requests": ROWS, "retries": 0}
    assert {name: done.json[name] for name in expected} == expected
    assert counted["by_status"] == {"200": ROWS}
    # A token of three seconds is renewed after 2.4.
    assert 5 <= counted["token_refreshes"] <= 2 + refetched + done.json["seconds"] / 2.4
    events = (shell.folder / "out/a_job/_run/events.jsonl").read_text().splitlines()
    told = [json.loads(event)["at"] for event in events]
    assert max(told) - min(told) > HOUR, "the clock has not jumped"
