"""Calls and token requests go the way that the environment names, except to this machine: there they go straight."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from aiohttp import web
from anyio import to_thread

from pipeline.data import Request
from pipeline.endpoint.client import Endpoint, EndpointAddress, open_endpoint
from pipeline.endpoint.credentials import Requester, reason_of
from pipeline.endpoint.network import CA_VARIABLES, goes_straight, proxy_for, tls_context
from pipeline.endpoint.token_source import ApiKey
from pipeline.faults import Fault, Unavailable, UsageError
from tests.servers import Answer, Call, Raw, Says, Server, chat, scripted

pytestmark = pytest.mark.anyio

REQUEST = Request(0, {"model": "m", "messages": [{"role": "user", "content": "hello"}]})
VARIABLES = [name for one in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (one, one.upper())]
USER = "canaryuser:canary%40pass"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of the network."""
    for name in (*VARIABLES, *CA_VARIABLES, "SSL_CERT_DIR", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# Which proxy


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://proxy.corp:3128", "http://proxy.corp:3128"),
        ("proxy.corp:3128", "http://proxy.corp:3128"),
        ("proxy.corp", "http://proxy.corp"),
        ("http://proxy.corp:3128/", "http://proxy.corp:3128"),
        (" http://proxy.corp:3128\n", "http://proxy.corp:3128"),
        ("https://proxy.corp", "https://proxy.corp"),
        ("[fd00::1]:3128", "http://[fd00::1]:3128"),
        (f"{USER}@proxy.corp:3128", "http://proxy.corp:3128"),
        (f"http://{USER}@proxy.corp:3128", "http://proxy.corp:3128"),
    ],
)
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_is_taken_in_every_spelling_and_its_credentials_apart(
    address: str, url: str, variable: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(variable, address)
    proxy = proxy_for("https://example.com/v1")
    assert proxy is not None
    assert proxy.url == url
    assert "canary" not in repr(proxy)
    assert (proxy.user, proxy.password) == (("canaryuser", "canary@pass") if "canary" in address else ("", ""))


@pytest.mark.parametrize(
    "address",
    [
        "socks5://canary:1080",
        "socks5h://user:canary@proxy:1080",
        "SOCKS4://canary",
        "http://canary:port",
        "http://",
        "ftp://canary",
        "http://[canary",
        "canary proxy",
        "http://u:canary@",
        "direct://",
    ],
)
def test_s9_a_proxy_that_cannot_be_used_is_told_by_its_variable_and_not_by_its_value(
    address: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("HTTPS_PROXY", address)
    with pytest.raises(UsageError, match="HTTPS_PROXY") as refused:
        proxy_for("https://example.com/v1")
    assert "canary" not in str(refused.value)


THIS_MACHINE = [
    "localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.1", "127.255.0.3", "2130706433",
    "0x7f000001", "0", "::1", "::ffff:127.0.0.1", "::", "169.254.169.254", "metadata.google.internal",
]  # fmt: skip
ELSEWHERE = ["example.com", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "128.0.0.1", "mylocalhost"]


@pytest.mark.parametrize("host", THIS_MACHINE)
def test_s9_no_proxy_is_on_the_way_to_this_machine_and_the_metadata_server(
    host: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("HTTP_PROXY", "http://proxy.corp")
    environment.setenv("no_proxy", "intranet.corp")
    assert goes_straight(host)
    assert proxy_for(f"http://[{host}]:80/v1" if ":" in host else f"http://{host}:80/v1") is None


@pytest.mark.parametrize("host", ELSEWHERE)
def test_a_proxy_is_on_the_way_to_any_other_host(host: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", "http://proxy.corp")
    assert not goes_straight(host)
    assert proxy_for(f"http://{host}/v1") is not None


def test_the_metadata_server_that_the_environment_names_is_reached_straight(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", "http://proxy.corp")
    environment.setenv("GCE_METADATA_HOST", "my-metadata:8080")
    assert proxy_for("http://my-metadata:8080/token") is None


EXEMPT = [
    "api.example.com", "example.com", ".example.com", "*.example.com", "*", "other.corp, api.example.com",
    "other.corp example.com", "API.EXAMPLE.COM", "api.example.com:8443", "example.com.",
]  # fmt: skip


@pytest.mark.parametrize("entry", EXEMPT)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_s9_no_proxy_is_honoured_in_either_case_and_every_usual_form(
    entry: str, variable: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy.corp")
    environment.setenv(variable, entry)
    other = "NO_PROXY" if variable == "no_proxy" else "no_proxy"
    environment.setenv(other, "unrelated.corp")
    assert proxy_for("https://api.example.com:8443/v1") is None


@pytest.mark.parametrize("entry", ["ample.com", "api.example.com:443", "com.example", "example.co", "10.0.0.0/8", ""])
def test_no_proxy_exempts_nothing_else(entry: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy.corp")
    environment.setenv("no_proxy", entry)
    assert proxy_for("https://api.example.com:8443/v1") is not None


@pytest.mark.parametrize(
    ("entry", "host"), [("10.0.0.0/8", "10.1.2.3"), ("10.1.2.3", "10.1.2.3"), ("fd00::/8", "[fd00::7]")]
)
def test_no_proxy_may_name_networks(entry: str, host: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy.corp")
    environment.setenv("NO_PROXY", entry)
    assert proxy_for(f"https://{host}/v1") is None


# The way of calls and token requests


@asynccontextmanager
async def asking(base_url: str) -> AsyncIterator[Endpoint]:
    async with open_endpoint(
        EndpointAddress.url(base_url), ApiKey("sk-canary-key"), connections=1, timeout_s=20
    ) as endpoint:
        yield endpoint


async def unavailable(base_url: str) -> Unavailable:
    async with asking(base_url) as endpoint:
        with pytest.raises(Unavailable) as caught:
            await endpoint.ask(REQUEST)
    assert "canary" not in caught.value.message
    return caught.value


async def request_token(url: str) -> str:
    """What came of a request to a token server, made as google-auth makes it: its text, or why there is none."""

    def ask() -> str:
        try:
            return str(Requester()(url, "POST", b"assertion=x").data.decode())
        except Exception as error:  # noqa: BLE001 - what google-auth makes of it is what is looked at
            return reason_of(error)

    return await to_thread.run_sync(ask)


async def test_s9_a_token_for_this_machine_never_meets_a_proxy(environment: pytest.MonkeyPatch) -> None:
    async with scripted(lambda _: chat("from the proxy")) as proxy, scripted(lambda _: chat("hello")) as server:
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            environment.setenv(variable, proxy.origin)
        environment.setenv("no_proxy", "intranet.corp")
        for host in ("localhost", "127.0.0.1"):
            async with asking(server.base_url.replace("127.0.0.1", host)) as endpoint:
                await endpoint.ask(REQUEST)
            assert "hello" in await request_token(server.origin.replace("127.0.0.1", host))
        assert len(server.calls) == 4
        assert proxy.calls == []


async def test_a_proxy_that_wants_a_user_gets_it_and_nobody_else_does(environment: pytest.MonkeyPatch) -> None:
    async with scripted(lambda _: chat("hello")) as proxy:
        environment.setenv("http_proxy", proxy.origin.replace("http://", f"{USER}@"))
        async with asking("http://endpoint.invalid/v1") as endpoint:
            await endpoint.ask(REQUEST)
        assert "hello" in await request_token("http://tokens.invalid/token")
        calls = proxy.calls
    assert [call.headers["Host"] for call in calls] == ["endpoint.invalid", "tokens.invalid"]
    expected = "Basic Y2FuYXJ5dXNlcjpjYW5hcnlAcGFzcw=="
    assert {call.headers["Proxy-Authorization"] for call in calls} == {expected}


async def test_h5_s9_a_proxy_that_refuses_is_the_reason_without_its_password(environment: pytest.MonkeyPatch) -> None:
    async with scripted(lambda _: Answer(b"", 407)) as proxy:
        environment.setenv("https_proxy", proxy.origin.replace("http://", f"http://{USER}@"))
        fault = await unavailable("https://endpoint.invalid/v1")
        assert fault.cause == "proxy"
        assert f"the proxy {proxy.origin} refused the connection: 407" in fault.message
        said = await request_token("https://tokens.invalid/token")
        assert "proxy" in said
        assert "canary" not in said


def echoed(call: Call, form: str, user: str) -> Says:
    """An answer of a proxy that repeats what signed in to it."""
    said = call.headers.get("Proxy-Authorization", "Basic " + b64encode(unquote(user).encode()).decode())
    words = f"you sent {said}, that is {b64decode(said.split()[-1]).decode()}, of http://{user}@proxy"
    forms: dict[str, Callable[[], Says]] = {
        "a page": lambda: Answer(f"<html>{words}</html>".encode(), 407),
        "an error": lambda: Answer(json.dumps({"error": {"message": words}}).encode(), 400),
        "the reason": lambda: Raw(f"HTTP/1.1 407 {words}\r\nContent-Length: 0\r\n\r\n".encode()),
        "no HTTP": lambda: Raw(f"{words}\r\n\r\n".encode()),
        "an answer": lambda: chat(words),
        "a stream": lambda: Answer(b"data: " + chat(words).body.replace(b'"message"', b'"delta"') + b"\n\n"),
    }
    return forms[form]()


@pytest.mark.parametrize("user", [USER, "canaryuser:canar", "canary12345:"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("form", ["a page", "an error", "the reason", "no HTTP", "an answer", "a stream"])
async def test_s9_a_proxy_that_repeats_what_signs_in_to_it_is_not_repeated(
    form: str, scheme: str, user: str, environment: pytest.MonkeyPatch
) -> None:
    async with scripted(lambda call: echoed(call, form, user)) as proxy:
        environment.setenv(f"{scheme}_proxy", proxy.origin.replace("http://", f"http://{user}@"))
        async with asking(f"{scheme}://endpoint.invalid/v1") as endpoint:
            try:
                reply = await endpoint.ask(replace(REQUEST, payload={**REQUEST.payload, "stream": form == "a stream"}))
                said = reply.body.decode()
            except Fault as fault:
                said = fault.message
        if form not in {"an answer", "a stream", "an error"}:
            said += await request_token(f"{scheme}://tokens.invalid/token") if scheme == "https" else ""
    pair = unquote(user)
    assert pair not in said
    assert b64encode(pair.encode()).decode() not in said
    assert len(pair.partition(":")[2]) < 6 or pair.partition(":")[2] not in said


async def test_h5_s9_a_proxy_that_is_not_there_is_the_reason(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", f"{USER}@127.0.0.1:1")
    fault = await unavailable("http://endpoint.invalid/v1")
    assert fault.cause == "proxy"
    assert "the proxy http://127.0.0.1:1 cannot be reached: " in fault.message
    said = await request_token("http://tokens.invalid/token")
    assert said.startswith("the proxy on the way to tokens.invalid cannot be used")
    assert "canary" not in said
    environment.setenv("http_proxy", "proxy.invalid:3128")
    assert (await unavailable("http://endpoint.invalid/v1")).cause == "proxy"


async def test_h5_h13_a_name_that_cannot_be_resolved_is_the_reason() -> None:
    fault = await unavailable("http://us-centrl1-aiplatform.invalid/v1")
    assert fault.cause == "dns"
    assert "the name us-centrl1-aiplatform.invalid cannot be resolved (DNS)" in fault.message
    assert "the name tokens.invalid cannot be resolved (DNS)" in await request_token("http://tokens.invalid/token")


async def test_h5_h13_a_port_where_nothing_listens_is_the_reason() -> None:
    fault = await unavailable("http://127.0.0.1:1/v1")
    assert fault.cause == "refused"
    assert "127.0.0.1:1 refused the connection: nothing listens there" in fault.message
    assert await request_token("http://127.0.0.1:1/token") == "127.0.0.1:1 cannot be reached: Connection refused"


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost that nobody has signed, and its key beside it."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run(
        [*made.split(), "-addext", "subjectAltName=DNS:localhost"], cwd=folder, check=True, capture_output=True
    )
    return folder / "cert.pem"


@asynccontextmanager
async def over_tls(certificate: Path) -> AsyncIterator[str]:
    """A server that says hello, by https."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server = Server(lambda _: chat("hello"))
    runner = web.ServerRunner(web.Server(server.handle, access_log=None), shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_h5_h13_a_certificate_that_is_not_trusted_is_the_reason(certificate: Path) -> None:
    async with over_tls(certificate) as origin:
        fault = await unavailable(f"{origin}/v1")
        assert fault.cause == "tls"
        assert "is not trusted: self-signed certificate" in fault.message
        assert "no TLS connection to localhost" in await request_token(f"{origin}/token")


@pytest.mark.parametrize("variable", CA_VARIABLES)
async def test_authorities_that_the_environment_names_are_trusted_by_calls_and_for_tokens(
    variable: str, certificate: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(variable, str(certificate))
    async with over_tls(certificate) as origin:
        async with asking(f"{origin}/v1") as endpoint:
            await endpoint.ask(REQUEST)
        assert "hello" in await request_token(f"{origin}/token")


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_authorities_that_are_not_there_or_are_none_are_told_by_their_variable(
    variable: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    for path in (tmp_path / "canary.pem", "x" * 5000, tmp_path / "none.pem"):
        environment.setenv(variable, str(path))
        with pytest.raises(UsageError, match=variable) as refused:
            tls_context()
        assert "canary" not in str(refused.value)


async def test_h5_h13_a_server_that_speaks_no_tls_is_the_reason() -> None:
    async with scripted(lambda _: chat("hello")) as server:
        fault = await unavailable(server.base_url.replace("http:", "https:"))
    assert fault.cause == "tls"
