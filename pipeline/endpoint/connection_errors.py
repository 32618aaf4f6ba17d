"""Why no whole answer arrived: aiohttp's errors as faults, each with a word for machines and a sentence for people."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import aiohttp

from pipeline.endpoint.network import CA_VARIABLES, Proxy
from pipeline.endpoint.redaction import redact_tokens
from pipeline.faults import Unavailable

DNS, REFUSED, UNREACHABLE, TLS, PROXY = "dns", "refused", "unreachable", "tls", "proxy"
TIMEOUT, CLOSED, RESET, CUT, NO_HTTP, STALE = "timeout", "closed", "reset", "cut", "no http", "stale"
"""The values of `Unavailable.cause`.

`STALE`: the server had closed a kept connection and has not seen the request; see
https://www.rfc-editor.org/rfc/rfc9112.html#section-9.3.1.
"""


def lost(error: Exception, proxy: Proxy | None = None) -> Unavailable:
    """The fault for an aiohttp error, with a plain description of what failed."""
    cause, said = _cause(error, proxy)
    fault = Unavailable(f"no whole answer: {redact_tokens(said)[:300]}")
    fault.cause = cause
    return fault


def _cause(error: Exception, proxy: Proxy | None) -> tuple[str, str]:
    """A word for machines and a sentence for people."""
    # Never `str` of aiohttp's errors: it contains addresses, and a proxy's with its password.
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return PROXY, f"the proxy {_named(proxy)} refused the connection: {error.status} {error.message}"
    # aiohttp reports the name of a proxy as it does that of a server.
    nameless = isinstance(error, aiohttp.ClientConnectorDNSError)
    if isinstance(error, aiohttp.ClientProxyConnectionError) or (nameless and proxy is not None):
        return PROXY, f"the proxy {_named(proxy)} cannot be reached: {_reason(error)}"
    return _unconnected(error) if isinstance(error, aiohttp.ClientConnectorError) else _broken_off(error)


def _unconnected(error: aiohttp.ClientConnectorError) -> tuple[str, str]:
    place = f"{error.host}:{error.port}"
    match error:
        case aiohttp.ClientConnectorDNSError():
            return DNS, f"the name {error.host} cannot be resolved (DNS): {_reason(error)}"
        case aiohttp.ClientConnectorCertificateError():
            return TLS, f"the certificate of {place} is not trusted: {_certificate(error.certificate_error)}"
        case aiohttp.ClientSSLError():
            return TLS, f"{place} makes no TLS connection: {_reason(error)}"
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return REFUSED, f"{place} refused the connection: nothing listens there"
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ETIMEDOUT:
            return TIMEOUT, f"{place} did not take the connection in time"
        case _:
            return UNREACHABLE, f"{place} cannot be reached: {_reason(error)}"


def _broken_off(error: Exception) -> tuple[str, str]:
    match error:
        case TimeoutError():
            return TIMEOUT, "no connection in time"
        case aiohttp.ServerDisconnectedError():
            return CLOSED, "the connection was closed without a whole answer"
        case aiohttp.ClientOSError() | ConnectionError():
            return RESET, f"the connection was lost: {_reason(error)}"
        case aiohttp.ClientPayloadError():
            return CUT, "the connection was closed within the answer"
        case aiohttp.ClientResponseError():
            return NO_HTTP, f"what came is no HTTP: {error.message}"
        case _:
            return CUT, f"the connection was lost: {_reason(error)}"


def _certificate(error: Exception) -> str:
    reason = getattr(error, "verify_message", "") or str(error)
    return f"{reason} (the authorities to trust can be named in {' or '.join(CA_VARIABLES[::2])})"


def _reason(error: Exception) -> str:
    """The reason given by the system."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, ssl.SSLError):
        return inner.reason or "the handshake failed"
    if isinstance(inner, OSError) and inner.errno and not isinstance(inner, socket.gaierror):
        return os.strerror(inner.errno)  # asyncio's own text only names the call that failed
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__


def is_unanswered(error: Exception) -> bool:
    """Whether the connection ended before the first byte of the answer."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # otherwise it is the head of an answer that had begun
    return isinstance(error, aiohttp.ClientOSError | aiohttp.ClientConnectionResetError)


def _named(proxy: Proxy | None) -> str:
    return "of the environment" if proxy is None else proxy.url
