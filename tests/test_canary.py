"""Canaries: secrets and a row's text are planted, every path is run, and every artefact is searched for them."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs

import pyarrow.parquet as pq
import pytest
from anyio.from_thread import start_blocking_portal

from pipeline.emulator.options import Options
from pipeline.emulator.vertex import emulated
from tests.commands import Done, Shell, ended
from tests.servers import Answer, Call, Held, Says, Served, Silence, chat, error, served

KEY = "Zq7-a-key-of-no-known-form-Zq7"
ROW = "the patient is Zebulon Quux-7731"
ROWS = 16

HEAD = """
from pydantic import BaseModel

from pipeline import Job, image


class Record(BaseModel):
    mood: str


def look_up(name: str) -> str:
    '''Looks a person up.

    Args:
        name: Who it is.
    '''
    raise ValueError(f"nobody is called {name}")


COMMON = dict(
    model="google/gemini-test", input="rows.jsonl", schema=Record, keep=["id"], attempts=1, max_failed=0.99
)
"""
JOBS = {
    "job.py": 'job = Job(name="a_job", user="Judge {{ text }}", **COMMON)',
    "wider.py": 'Record = type("Record", (Record,), {"__annotations__": {"why": str | None}, "why": None})\n'
    'job = Job(name="a_job", user="Judge {{ text }}", **(COMMON | {"schema": Record}))',
    "tools.py": 'job = Job(name="tools", user="Judge {{ text }}", tools=[look_up], transcript=True, **COMMON)',
    "plain.py": 'job = Job(name="plain", user="Judge {{ text }}", **(COMMON | {"schema": None}))',
    "media.py": 'job = Job(name="media", user=["Judge", image("text")], media_root=".", **COMMON)',
}


def told_back(call: Call) -> Says:
    """Every kind of answer there is, each telling the caller's own secret and request back where it can."""
    secret = call.headers["Authorization"]
    leak = f"you sent {secret}, that is {secret.removeprefix('Bearer ')}, token={secret.split()[-1]}: {call.prompt}"
    html = f"<html><title>Error</title>{leak}</html>".encode()
    mistakes: list[Says] = [
        error(400, "INVALID_ARGUMENT", leak),
        error(500, "INTERNAL", leak),
        replace(error(503), body=html, headers={"Content-Type": "text/html"}),
        Answer(json.dumps([{"error": {"code": 400, "status": "X", "message": leak}}]).encode()),
        Answer(leak.encode()),
        Answer(html),
        chat(leak),
        chat(None, finish_reason="content_filter"),
        chat(json.dumps({"mood": ROW})[:-2], finish_reason="length"),
        chat(json.dumps({"mood": "good"}), refusal=leak),
        Answer(b""),
    ]
    number = int(call.body.decode().partition(ROW)[2][1:3].strip('"'))
    return mistakes[number] if number < len(mistakes) else chat(json.dumps({"mood": ROW if number % 2 else "good"}))


def calls_tools(call: Call) -> Says:
    """A call of the tool with the row's text, which the tool repeats in its error; then an answer, or a wrong call."""
    function = {"name": "look_up", "arguments": json.dumps({"name": ROW} if call.number % 3 else {"nom": ROW})}
    calls = [{"id": "c", "type": "function", "function": function}]
    asked = call.json()["messages"]
    return chat(json.dumps({"mood": ROW})) if asked[-1]["role"] == "tool" else chat(None, tool_calls=calls)


def denied(status: int, call: Call) -> Says:
    return error(status, "NO", f"{call.headers['Authorization']} {call.prompt}")


def throttled_first(call: Call) -> Says:
    """429 to every first call, with what it said."""
    if call.number < ROWS:
        return error(429, "RESOURCE_EXHAUSTED", f"{call.headers['Authorization']} {call.prompt}")
    return chat('{"mood": "good"}')


@dataclass
class Traces:
    """What was printed, by the command that printed it, and what was written."""

    shell: Shell
    commands: list[tuple[tuple[str, ...], Done]] = field(default_factory=list)

    def run(self, *arguments: str) -> Done:
        done = self.shell.pipeline(*arguments)
        self.commands.append((arguments, done))
        assert "Traceback" not in done.err, done
        return done

    def printed(self) -> Iterator[tuple[str, str]]:
        for arguments, done in self.commands:
            yield f"stdout of {arguments}", done.out
            yield f"stderr of {arguments}", done.err

    def paths(self) -> list[Path]:
        return sorted(path for path in (self.shell.folder / "out").rglob("*") if path.is_file())

    def written(self) -> Iterator[tuple[str, bytes]]:
        """Every file, and what is in those that are compressed."""
        for path in self.paths():
            name = str(path.relative_to(self.shell.folder))
            yield name, path.read_bytes()
            if path.suffix in {".parquet", ".replies"}:
                yield f"rows of {name}", repr(pq.ParquetFile(path).read().to_pylist()).encode()

    def metadata(self) -> Iterator[tuple[str, bytes]]:
        """What journals, kept replies and parts say of themselves."""
        for path in self.paths():
            if path.name == "journal.sqlite":
                with closing(sqlite3.connect(path)) as journal:
                    entries = [meta for (meta,) in journal.execute("SELECT meta FROM entries")]
                    parts = [part for (part,) in journal.execute("SELECT part FROM parts")]
                yield f"metadata of {path}", b"\n".join([*entries, *parts])
            elif path.suffix == ".replies":
                rows = pq.ParquetFile(path).read(["meta"]).to_pylist()
                yield f"metadata of {path}", b"\n".join(row["meta"] for row in rows)
            elif path.suffix == ".parquet":
                yield f"footer of {path}", repr(pq.read_metadata(path).metadata).encode()


def places_of(secret: str, places: Mapping[str, bytes]) -> list[str]:
    return [name for name, content in places.items() if secret.encode() in content]


@pytest.fixture
def traces(tmp_path: Path) -> Traces:
    shell = Shell(tmp_path, {"OPENAI_API_KEY": KEY})
    for name, source in JOBS.items():
        shell.write(name, HEAD + source)
    rows = [{"id": number, "text": f"{ROW} {number}"} for number in range(ROWS)]
    shell.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return Traces(shell)


def go_every_way(traces: Traces, server: Served, *access: str) -> None:
    """Every path that a run can take, each in a folder of its own."""
    to_server = ("--base-url", server.base_url, "--no-adaptive", *access)
    ask = ("run", "job.py", *to_server)
    traces.run(*ask, "--json")
    traces.run(*ask, "--retry-failed", "--quiet")
    traces.run("reparse", "out/a_job", "--job", "wider.py", "--json")
    traces.run(*ask, "--set", "user=Now {{ text }}")  # refused: the prompt changed
    traces.run("show", "out/a_job", "--json", "-n", "99")
    traces.run("show", "out/a_job", "--failed")
    traces.run("status", "out/a_job", "--json")
    traces.run("plan", "job.py")
    server.follow(calls_tools)
    traces.run("run", "tools.py", *to_server, "--json")
    traces.run("run", "media.py", *to_server, "--json")
    for status in (401, 403, 404, 302):
        server.follow(partial(denied, status))
        traces.run(*ask, "--output", f"out/denied-{status}", "--json")
        traces.run(*ask, "--output", f"out/denied-{status}")
    go_broken_ways(traces, server, *ask)


def go_broken_ways(traces: Traces, server: Served, *ask: str) -> None:
    """Runs that are ended from outside and resumed, that are throttled, and whose input is broken."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        server.follow(lambda call: Silence() if call.number % 2 else Held(chat(json.dumps({"mood": ROW}))))
        output = ("--output", f"out/ended-{number.name}")
        arguments = (*ask, *output, "--drain-timeout", "0.1", "-c", "4", "--json")
        with traces.shell.started(*arguments) as child:
            server.arrived(len(server.calls) + 4)
            server.release()
            server.arrived(len(server.calls) + 1)
            while not (traces.shell.folder / output[1] / "_run" / "state.json").exists():
                assert child.poll() is None
                time.sleep(0.01)
            child.send_signal(number)
            traces.commands.append((arguments, ended(child)))
    before = len(server.calls)
    server.follow(lambda call: throttled_first(replace(call, number=call.number - before)))
    traces.run(*ask, "--output", f"out/ended-{signal.SIGKILL.name}", "--json")
    bad = json.dumps({"id": 1, "text": ROW})[:-1]
    traces.shell.write("bad.jsonl", f'{{"id": 0, "text": "{ROW} 12"}}\n{bad}\n{{"id": [1], "text": "{ROW} 13"}}\n')
    server.follow(told_back)
    traces.run(*ask, "--input", "bad.jsonl", "--output", "out/bad", "--json")
    traces.run(*ask, "--input", "bad.jsonl", "--output", "out/worse", "--set", "max_failed=0")


def require_silence(traces: Traces, secrets: list[str]) -> None:
    printed = {name: text.encode() for name, text in traces.printed()}
    written, metadata = dict(traces.written()), dict(traces.metadata())
    assert len(printed) > 30
    assert len(written) > 30
    for secret in secrets:
        assert places_of(secret, printed | written) == [], secret[:6]
    rows_belong = ("part-", ".parquet", ".replies", "journal.sqlite")
    elsewhere = {name: content for name, content in written.items() if not any(part in name for part in rows_belong)}
    assert {Path(name).name for name in elsewhere} >= {"plan.json", "lock", "_manifest.json", "_SUCCESS", "state.json"}
    shows = ("'show'", "'plan'")
    silent = {
        name: text
        for name, text in printed.items()
        if name.startswith("stderr") or ("'--json'" in name and not any(word in name for word in shows))
    }
    assert places_of(ROW, elsewhere | silent | metadata) == []
    assert places_of("Quux", elsewhere | silent | metadata) == []
    require_sight(written, metadata)


def require_sight(written: Mapping[str, bytes], metadata: Mapping[str, bytes]) -> None:
    """The search finds what is there: the row's text where it belongs, and metadata to look at."""
    places = places_of(ROW, written)
    for kind in ("rows of out/a_job/data/part-", "rows of out/a_job/_run/replies", "ended-SIGTERM/_run/journal.sqlite"):
        assert any(kind in place for place in places), kind
    for kind in ("journal.sqlite", ".replies", ".parquet"):
        assert any(content for name, content in metadata.items() if kind in name), kind


def test_s4_an_api_key_and_a_rows_text_are_found_nowhere_but_the_row_where_it_belongs(traces: Traces) -> None:
    with served(told_back) as server:
        go_every_way(traces, server)
    assert {call.headers["Authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    require_silence(traces, [KEY])
    assert {done.code for _, done in traces.commands} >= {0, 2, 7, 143, -9}


def test_s4_a_service_account_and_its_tokens_are_found_nowhere(
    traces: Traces, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("credentials")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(emulated(Options(directory=folder))) as vertex,
        served(told_back) as server,
    ):
        account = json.loads(Path(vertex.address.credentials_file).read_text())
        go_every_way(traces, server, "--credentials", vertex.address.credentials_file)
        assertions = go_to_a_token_server_that_repeats_all(traces, server, account)
    tokens = {call.headers["Authorization"].removeprefix("Bearer ") for call in server.calls}
    assert len(tokens) > 4
    key = [line for line in account["private_key"].splitlines() if not line.startswith("-----")]
    require_silence(traces, [*tokens, *key, *assertions])


def go_to_a_token_server_that_repeats_all(traces: Traces, server: Served, account: dict[str, str]) -> list[str]:
    """What it was sent."""
    sent: list[str] = []

    def repeat(call: Call) -> Answer:
        sent.extend(parse_qs(call.body.decode())["assertion"])
        told = {"error": "invalid_grant", "error_description": call.body.decode()}
        return Answer(json.dumps(told).encode(), 400)

    with served(repeat) as tokens:
        path = traces.shell.write("account.json", json.dumps(account | {"token_uri": f"{tokens.server.origin}/token"}))
        ask = ("run", "job.py", "--base-url", server.base_url, "--credentials", str(path), "--output", "out/no-token")
        for more in ((), ("--json",)):
            assert traces.run(*ask, *more).code == 7
    assert sent
    return [*sent, *(assertion.rpartition(".")[2] for assertion in sent)]


# Every form in which a server may write what it was sent, in every place of an answer

FORMED = "Zq7/CANARYKEY+0123456789/abcdefGHIJ"
FORMS: list[Callable[[str], str]] = [
    str,
    lambda key: key.replace("/", "\\/"),
    lambda key: "".join(f"\\u{ord(one):04x}" for one in key),
    lambda key: key.replace("K", "\\u004b").replace("+", "\\u002B"),
    lambda key: key.replace("/", "%2F").replace("+", "%2B"),
    lambda key: key.replace("/", "&#47;"),
    lambda key: f"...{key[4:]}",
    lambda key: f"{key[:-4]}****",
]
MARK = "SAID-HERE"
CALL = {"id": MARK, "type": "function", "function": {"name": "look_up", "arguments": json.dumps({"name": MARK})}}
PLACES: list[Answer] = [
    chat(MARK),
    chat(json.dumps({"mood": MARK})),
    chat(None, refusal=MARK),
    chat("x", finish_reason=MARK),
    chat("x", extra_content={"google": {"thought_signature": MARK}}),
    chat(None, tool_calls=[CALL]),
    replace(
        chat("x"), body=chat("x").body.replace(b"google/gemini-test", MARK.encode()).replace(b"an-id", MARK.encode())
    ),
    replace(chat("x"), headers={"Content-Type": "application/json", "x-request-id": MARK, "Set-Cookie": f"a={MARK}"}),
    error(400, MARK, MARK),
    error(500, MARK, MARK),
    error(429, MARK, MARK, **{"Retry-After": MARK}),
    Answer(json.dumps({"error": {"message": MARK, "details": [{"reason": MARK}]}}).encode()),
    Answer(f"<html>{MARK}</html>".encode(), 502),
    Answer(f"data: {json.dumps({'error': {'message': MARK, 'code': 400}})}\n\n".encode()),
    Answer(f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': MARK}}]})}\n\ndata: [DONE]\n\n".encode()),
]


def said_everywhere(call: Call) -> Says:
    """The caller's key in one form and one place, and in another at each call."""
    key = call.headers["Authorization"].removeprefix("Bearer ")
    answer, form = PLACES[call.number % len(PLACES)], FORMS[call.number // len(PLACES) % len(FORMS)]
    streamed = answer.body.startswith(b"data:")
    headers = {name: value.replace(MARK, key) for name, value in answer.headers.items()}
    headers |= {"Content-Type": "text/event-stream"} if streamed else {}
    return replace(answer, body=answer.body.replace(MARK.encode(), form(key).encode()), headers=headers)


def require_no_part_of(secret: str, parts: list[str], traces: Traces) -> None:
    places = {name: text.encode() for name, text in traces.printed()} | dict(traces.written()) | dict(traces.metadata())
    for part in (secret, *parts):
        assert places_of(part, places) == [], part


def test_s4_a_key_that_is_masked_cut_or_escaped_is_found_nowhere(traces: Traces) -> None:
    rows = [{"id": number, "text": f"{ROW} {number}"} for number in range(len(PLACES) * len(FORMS))]
    traces.shell.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    keyed = Traces(Shell(traces.shell.folder, {"OPENAI_API_KEY": f"{FORMED}\n"}))
    with served(said_everywhere) as server:
        ask = ("--base-url", server.base_url, "--no-adaptive", "--set", "repairs=0", "--set", "max_failed=1000")
        for job, more in (("job.py", ()), ("job.py", ("--set", "stream=true")), ("tools.py", ()), ("plain.py", ())):
            traces.shell.write(
                "plain.py", HEAD + 'job = Job(name="plain", user="{{ text }}", **(COMMON | {"schema": None}))'
            )
            output = f"out/{job}-{len(more)}"
            keyed.run("run", job, *ask, *more, "--output", output, "--json")
            keyed.run("show", output, "--json", "-n", "200")
            keyed.run("report", output)
            keyed.run("status", output)
        assert {call.headers["Authorization"] for call in server.calls} == {f"Bearer {FORMED}"}
        assert len(server.calls) >= 4 * len(rows)
    require_no_part_of(FORMED, ["CANARYKEY", "CANARY", "0123456789", "abcdefGHIJ"], keyed)


# Every setting that may hold a secret

CANARY = "Qx9canaryQx9"
HOLDS_A_KEY = json.dumps({"type": "service_account", "private_key": f"-----BEGIN PRIVATE KEY-----\n{CANARY}" * 40})


def test_s4_s9_t7_no_setting_that_may_hold_a_secret_is_repeated(traces: Traces) -> None:
    def refuse(call: Call) -> Says:
        return Answer(b"", 407) if call.method == "CONNECT" else error(404, "NOT_FOUND", f"no {call.path} here")

    with served(refuse) as server:
        origin = server.server.origin
        proxy = origin.replace("http://", f"http://user:{CANARY}@")
        settings: list[tuple[dict[str, str], tuple[str, ...]]] = [
            ({"GOOGLE_APPLICATION_CREDENTIALS": HOLDS_A_KEY}, ()),
            ({"GOOGLE_APPLICATION_CREDENTIALS": CANARY}, ()),
            ({}, ("--credentials", HOLDS_A_KEY)),
            ({}, ("--credentials", CANARY)),
            ({}, ("--project", HOLDS_A_KEY)),
            ({}, ("--location", f"{CANARY}/")),
            ({}, ("--base-url", f"https://user:{CANARY}@example.invalid/v1")),
            ({}, ("--base-url", f"{CANARY}://example.invalid/v1")),
            ({}, ("--base-url", f"{origin}/v1?key={CANARY}")),
            ({"OPENAI_BASE_URL": f"https://example.invalid/{CANARY} x"}, ()),
            ({"OPENAI_API_KEY": f"{CANARY}\n{CANARY}"}, ("--base-url", f"{origin}/v1")),
            ({"OPENAI_API_KEY": f"“{CANARY}”"}, ("--base-url", f"{origin}/v1")),
            ({"http_proxy": proxy}, ("--base-url", "http://example.invalid/v1")),
            ({"HTTPS_PROXY": proxy.removeprefix("http://")}, ("--base-url", "https://example.invalid/v1")),
            ({"HTTPS_PROXY": f"user:{CANARY}@127.0.0.1:1"}, ("--base-url", "https://example.invalid/v1")),
            ({"HTTPS_PROXY": f"socks5://user:{CANARY}@127.0.0.1:1"}, ("--base-url", "https://example.invalid/v1")),
            ({"HTTPS_PROXY": f"http://user:{CANARY}@127.0.0.1:port"}, ("--base-url", "https://example.invalid/v1")),
            ({"SSL_CERT_FILE": f"/{CANARY}"}, ("--base-url", "https://example.invalid/v1")),
        ]
        for number, (variables, arguments) in enumerate(settings):
            said = Traces(Shell(traces.shell.folder, {"OPENAI_API_KEY": KEY, **variables}))
            for more in ("--json", "--quiet"):
                flags = (more, "--output", f"out/{number}", "--fresh", "--give-up-after", "1")
                done = said.run("run", "job.py", *arguments, *flags)
                assert done.code in {2, 3, 7}, done
            require_no_part_of(CANARY, [CANARY[:8]], said)
