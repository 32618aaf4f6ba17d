"""Network settings from the environment: proxies, the hosts that need none, and certificate authorities.

Calls and token requests both use them, so that they take the same route. curl's and requests' conventions: HTTPS_PROXY,
HTTP_PROXY, ALL_PROXY and NO_PROXY in either case; REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE and SSL_CERT_FILE.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
import ssl
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.faults import UsageError

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that name the certificate authorities to trust, in order of precedence."""

_METADATA_VARIABLES = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP")
_METADATA_HOSTS = {"metadata.google.internal", "metadata"}

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy: its credentials, and its address without them, so that no message can repeat them."""

    url: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def authorization(self) -> str | None:
        """The header that signs in to the proxy; None if it needs none."""
        if not self.user and not self.password:
            return None
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What signs in to it, in the forms in which a proxy may repeat it: the pair, its base64, and the password."""
        if self.authorization is None:
            return ()
        pair = f"{self.user}:{self.password}"
        return pair, self.authorization.removeprefix("Basic "), self.password or self.user


def proxy_secrets() -> list[str]:
    """`Proxy.secrets` of every proxy that the environment names."""
    secrets: list[str] = []
    for scheme, address in urllib.request.getproxies().items():
        with suppress(UsageError):  # an unusable one is never asked
            secrets += _proxy(address.strip(), _variable(scheme)).secrets
    return secrets


def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment names for this URL; None for a direct connection.

    Connections to this machine and to the metadata server are always direct: a token on its way there would pass the
    proxy unencrypted. Raises `UsageError`, which names the variable and not its value, for an unusable proxy.
    """
    parts = urlsplit(url)
    if parts.hostname is None or goes_straight(parts.hostname) or _is_exempt(parts.hostname, _port(parts)):
        return None
    found = urllib.request.getproxies()
    address = found.get(parts.scheme) or found.get("all")
    return _proxy(address.strip(), _variable(parts.scheme)) if address and address.strip() else None


def goes_straight(host: str) -> bool:
    """Whether a host is always reached directly: this machine in any spelling, link-local, or the metadata server."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost") or host in _METADATA_HOSTS:
        return True
    if any(host == os.environ.get(name, "").partition(":")[0].lower() for name in _METADATA_VARIABLES):
        return True
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and (address.is_loopback or address.is_unspecified or address.is_link_local)


def ca_bundles() -> list[str]:
    """The files or folders of certificate authorities that the environment names, by precedence.

    Raises `UsageError` when one is missing: OpenSSL would ignore it, and then trust no one.
    """
    return [_existing(name, os.environ[name]) for name in CA_VARIABLES if os.environ.get(name)]


def tls_context() -> ssl.SSLContext | None:
    """The authorities named by the environment, in addition to the system's; None when it names none.

    Raises `UsageError` when the named files contain no certificates.
    """
    bundles = ca_bundles()
    if not bundles:
        return None
    context = ssl.create_default_context()
    for bundle in dict.fromkeys(bundles):
        is_folder = Path(bundle).is_dir()
        try:
            context.load_verify_locations(None if is_folder else bundle, bundle if is_folder else None)
        except OSError as error:  # SSLError is one
            names = " and ".join(name for name in CA_VARIABLES if os.environ.get(name) == bundle)
            raise UsageError(f"{names} names a file that holds no certificates in PEM form: {error.strerror}") from None
    return context


def _existing(name: str, path: str) -> str:
    try:
        found = Path(path).exists()
    except (OSError, ValueError):  # the path is too long or has a null byte
        found = False
    if not found:
        raise UsageError(f"{name} names a file of certificate authorities that is not there")
    return path


def _proxy(address: str, variable: str) -> Proxy:
    parts = _split(address if "://" in address else f"http://{address}", variable)
    if parts.scheme.startswith("socks"):
        raise UsageError(
            f"{variable} names a SOCKS proxy, and only HTTP proxies can be used: name one, unset the variable, or put "
            f"the endpoint's host into NO_PROXY"
        )
    if parts.scheme not in {"http", "https"}:
        raise UsageError(f"{variable} names no HTTP proxy: it must be like http://host:port")
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    port = "" if parts.port is None else f":{parts.port}"
    return Proxy(f"{parts.scheme}://{shown}{port}", unquote(parts.username or ""), unquote(parts.password or ""))


def _split(address: str, variable: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        usable = re.fullmatch(r"[\w.:%-]+", parts.hostname or "") and parts.port != 0
    except ValueError:  # a port that is not a number, or an unclosed bracket
        usable = None
    if not usable:
        raise UsageError(f"{variable} cannot be read: it must be like http://host:port")
    return parts


def _variable(scheme: str) -> str:
    """The variable that names the proxy; the lower-case spelling takes precedence, as in curl."""
    names = [spelled for name in (f"{scheme}_proxy", "all_proxy") for spelled in (name, name.upper())]
    return next((name for name in names if os.environ.get(name)), "the system's proxy setting")


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _is_exempt(host: str, port: int) -> bool:
    """Whether NO_PROXY, in either case, covers the host: by name, domain, `*`, address or network, even with a port."""
    said = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    host, address = host.lower().rstrip("."), _address(host)
    for entry in filter(None, re.split(r"[\s,]+", said.lower())):
        name, ported = _without_port(entry)
        if ported not in {None, port}:
            continue
        domain = name.removeprefix("*").lstrip(".").rstrip(".")
        if entry == "*" or (domain and (host == domain or host.endswith(f".{domain}"))):
            return True
        if address is not None and _holds(name, address):
            return True
    # On systems other than Linux, the system settings have exemptions too.
    return bool(urllib.request.proxy_bypass(host))


def _without_port(entry: str) -> tuple[str, int | None]:
    name, colon, port = entry.rpartition(":")
    if colon and port.isdecimal() and (name.startswith("[") or ":" not in name):
        return name.strip("[]"), int(port)
    return entry.strip("[]"), None


def _holds(network: str, address: _IpAddress) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _address(host: str) -> _IpAddress | None:
    """The IP address that a host name spells, including `127.1` or `0x7f000001`, which system resolvers accept."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if re.fullmatch(r"[0-9a-fx.]+", host) else None
    except OSError:
        return None
