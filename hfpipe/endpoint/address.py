"""Where a server is, and the token that it gets."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx

from hfpipe.errors import UsageError

# Where huggingface_hub's InferenceClient sends conversations, and the Hub chooses among the providers of a model.
HUB = "https://router.huggingface.co/v1"
TOKEN = "HFPIPE_ENDPOINT_TOKEN"
_HUB_TOKEN = "HF_TOKEN"
# These get the token of the Hub.
_OF_THE_HUB = re.compile(r"(.+\.)?(huggingface\.co|endpoints\.huggingface\.cloud)")
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


class Secret:
    """A token, which no repr and no traceback shows."""

    __slots__ = ("_value", "name")

    def __init__(self, value: str, name: str) -> None:
        if not (value.isascii() and value.isprintable() and " " not in value):
            raise UsageError(
                f"The token in {name} has characters that no token has.", hint="Copy it again from where it was made."
            )
        self._value, self.name = value, name

    def __repr__(self) -> str:
        return f"<the token in {self.name}>"

    def __reduce__(self) -> Any:
        raise TypeError("A token is not pickled.")

    def authorize(self, request: httpx.Request) -> httpx.Request:
        """For httpx, as auth."""
        request.headers["Authorization"] = f"Bearer {self._value}"
        return request

    def hide(self, text: str) -> str:
        return text.replace(self._value, "***")


class Address:
    """The URL of a server as the user gave it, None for the providers of the Hub. `shown` has no query, which may hold
    a secret.

    It may end in /v1, in the path of a request, or in the name of the server. Raises UsageError.
    """

    def __init__(self, given: str | None) -> None:
        try:
            parts = urlsplit(HUB if given is None else given.strip())
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid:
            hint = "It looks like https://host/v1 or http://127.0.0.1:8000/v1."
            raise UsageError("--endpoint is not the URL of a server.", hint=hint)
        if parts.username is not None or parts.password is not None:
            hint = f"Set the token as {TOKEN}, where no list of processes shows it."
            raise UsageError("--endpoint must not have a user or a password in its URL.", hint=hint)
        path = re.sub(r"/+(chat/)?completions$", "", parts.path.rstrip("/")).rstrip("/")
        self._parts: SplitResult = parts._replace(path=path or "/v1", fragment="")
        self.host = str(parts.hostname)
        self.is_hub = given is None
        self.is_hugging_face = self.is_hub or bool(_OF_THE_HUB.fullmatch(self.host))
        self.is_encrypted = parts.scheme == "https"
        self.is_loopback = bool(_LOOPBACK.fullmatch(self.host))

    @property
    def shown(self) -> str:
        return urlunsplit(self._parts._replace(query=""))

    def of(self, path: str) -> str:
        """The URL of a request; a path that begins with / is the server's, whatever the prefix is."""
        base = self._parts.path
        return urlunsplit(self._parts._replace(path=path if path.startswith("/") else f"{base}/{path}"))

    def token(self) -> Secret | None:
        """From the environment, or for a server of Hugging Face also from where `hf auth login` keeps it. Raises
        UsageError where it would be read on its way."""
        secret = None
        if not self.is_hub and (own := os.environ.get(TOKEN, "").strip()):
            secret = Secret(own, TOKEN)
        elif self.is_hugging_face:
            from huggingface_hub import constants, get_token

            if value := get_token():
                secret = Secret(value, _HUB_TOKEN if os.environ.get(_HUB_TOKEN) else constants.HF_TOKEN_PATH)
        if secret and not (self.is_encrypted or self.is_loopback):
            message = f"The token in {secret.name} would go to {self.host} unencrypted."
            raise UsageError(message, hint=f"Use https:// in --endpoint, or unset {secret.name}.")
        return secret
