"""Whether the user's variables let a request leave for the Hub: proxies, certificates, the token."""

from __future__ import annotations

import os

import httpx
from huggingface_hub import constants, get_session, get_token

from hfpipe.errors import DownloadError

_PROXIES = ("all_proxy", "http_proxy", "https_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_CLIENT_ERRORS = (ImportError, OSError, ValueError, httpx.InvalidURL)


def check() -> None:
    """Raises DownloadError, with the name of the variable that is at fault. No request is made."""
    try:
        get_session()
    except _CLIENT_ERRORS as error:
        raise _proxy_at_fault() or _other_fault(error) from error
    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        where = next(filter(os.environ.get, _TOKENS), constants.HF_TOKEN_PATH)
        raise DownloadError(
            f"The token in {where} has characters that no token has.",
            hint=f"Copy it again from {constants.ENDPOINT}/settings/tokens, or remove it.",
        )


def _proxy_at_fault() -> DownloadError | None:
    """Never shows a proxy's whole address: it may hold a password."""
    for variable, value in os.environ.items():
        if variable.lower() not in _PROXIES or not value:
            continue
        scheme = value.partition("://")[0] if "://" in value else "http"
        try:
            httpx.HTTPTransport(proxy=value if "://" in value else f"http://{value}", verify=False).close()
        except ImportError:
            return DownloadError(
                f"{variable} names a SOCKS proxy, and the package socksio is not installed.",
                hint=f"Install it with `pip install socksio`, or unset {variable}.",
            )
        except httpx.InvalidURL:
            return DownloadError(
                f"{variable} is not the address of a proxy.", hint=f"Write http://HOST:PORT, or unset {variable}."
            )
        except ValueError:
            return DownloadError(
                f"{variable} begins with {scheme}://, which is no kind of proxy that can be used.",
                hint=f"Write http://, https:// or socks5:// before the host, or unset {variable}.",
            )
    return None


def _other_fault(error: Exception) -> DownloadError:
    if not isinstance(error, OSError):
        return DownloadError(f"NO_PROXY cannot be used: {error}", hint="Correct it, or unset it.")
    given = {name: os.environ[name] for name in _CERTIFICATES if os.environ.get(name)}
    missing = [name for name, path in given.items() if not os.path.exists(path)]
    named = " or ".join(missing or given) or "The system's store of certificates"
    return DownloadError(f"{named} cannot be used: {error.strerror or error}.", hint="Correct it, or unset it.")
