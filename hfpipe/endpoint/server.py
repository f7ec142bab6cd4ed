"""A server by HTTP: retries, deadlines, and its failures in words."""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

from hfpipe.endpoint.address import TOKEN, Address
from hfpipe.endpoint.protocol import (
    CHAT,
    DONE,
    EventReader,
    Part,
    message_of,
    names_by_owner,
    part,
    schema_properties,
)
from hfpipe.errors import (
    AccessDenied,
    BackendError,
    ContextLengthError,
    HFPipeError,
    ModelNotFound,
    ServerUnavailable,
    nearest,
)

T = TypeVar("T")

# The last is between the end of an answer and that of its response.
_CONNECT_S, _BETWEEN_BYTES_S, _END_S = 10.0, 120.0, 0.5
_ATTEMPTS, _FIRST_PAUSE_S = 5, 0.5
_TOO_MANY = 429
_DENIED = (401, 403)
# Of an answer that is an error: the bytes that are read, and the characters that are shown.
_READ, _SHOWN = 65_536, 300
_LISTED = 8
_TOO_LONG = re.compile(
    "context_length_exceeded|context length|context window|maximum context|too many tokens", re.IGNORECASE
)


class Retryable(BackendError):
    """The server may answer if it is asked again, after `wait_s` where it says when."""

    def __init__(self, message: str, *, hint: str | None = None, wait_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.wait_s = wait_s


class Unavailable(Retryable, ServerUnavailable):
    """It may answer later; until then it answers no other request either."""


class Server:
    """Requests to one server over one pool of connections, for one event loop. A request is tried again while nothing
    of its answer has come; all of it is bounded by the caller."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address = address
        self.name = "The Hub" if address.is_hub else address.shown
        self.token = address.token()
        self._idle_s, self._timeout_s = min(_BETWEEN_BYTES_S, timeout_s), timeout_s
        times = httpx.Timeout(self._idle_s, connect=min(_CONNECT_S, timeout_s), pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # A redirect is an error: what is asked, and the token, go nowhere else. Compressed text would come in blocks.
        headers = {"Accept-Encoding": "identity", "User-Agent": "hfpipe"}
        auth = self.token.authorize if self.token else None
        try:
            self._client = httpx.AsyncClient(
                timeout=times,
                limits=limits,
                headers=headers,
                auth=auth,
                # What is meant for this machine goes through no proxy.
                trust_env=address.is_encrypted or not address.is_loopback,
            )
        except (OSError, ValueError, httpx.InvalidURL, ssl.SSLError) as error:
            hint = "Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE."
            raise BackendError(
                f"{self.name} cannot be asked with the proxies and certificates as set.", hint=hint
            ) from error
        self._takes: dict[str, Mapping[str, str]] = {}

    async def parts(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        """What is posted to `path` answered, up to its end or where it breaks off. Raises an HFPipeError."""
        response = await self._retried(lambda: self._post(path, body))
        reader, pieces = EventReader(), response.aiter_bytes()
        try:
            async for data in pieces:
                for event in reader.feed(data):
                    if event == DONE:
                        with suppress(asyncio.TimeoutError, httpx.HTTPError):
                            await asyncio.wait_for(_rest(pieces), _END_S)
                        return
                    yield part(event)
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        except BackendError as error:
            hint = "The server may not speak the OpenAI protocol, or its log says what failed."
            raise BackendError(f"{self.name} sent {self._line(error.message)}.", hint=hint) from None
        finally:
            await response.aclose()

    async def takes(self, path: str) -> Mapping[str, str]:
        """What a request may hold beside the plain protocol, with the server's names for it, by its openapi.json;
        where it has none, by whose it is (llama.cpp, vLLM). Raises BackendError where the server cannot be asked."""
        if path not in self._takes:
            properties = schema_properties(await self._retried(lambda: self._get("/openapi.json")), path)
            names = {name: name for name in properties}
            self._takes[path] = names or names_by_owner(await self._retried(lambda: self._get("models")))
        return self._takes[path]

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _retried(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the server is asked for, asked for again where it may answer later, and in time."""
        end = time.monotonic() + self._timeout_s
        attempt = 0
        while True:
            attempt += 1
            try:
                return await ask()
            except Retryable as error:
                pause_s = error.wait_s
                if pause_s is None:
                    # Of all who were refused together, not all ask again together.
                    pause_s = random.uniform(0.5, 1.5) * _FIRST_PAUSE_S * 2 ** (attempt - 1)
                if attempt == _ATTEMPTS or time.monotonic() + pause_s > end:
                    raise
            await asyncio.sleep(pause_s)

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """A response that is a stream of events."""
        try:
            # Escaped, as a prompt may hold half a surrogate pair.
            content = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
            request = self._client.build_request("POST", self.address.of(path), content=content, headers=headers)
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.status_code == httpx.codes.OK and kind == "text/event-stream":
            return response
        try:
            raise await self._refused(response, kind, path, str(body["model"]))
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        finally:
            await response.aclose()

    async def _refused(self, response: httpx.Response, kind: str, path: str, model: str) -> HFPipeError:
        """Why a response is not the answer."""
        status, data = response.status_code, b""
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > _READ:
                break
        if status == httpx.codes.OK:
            what = "a web page" if kind == "text/html" else kind or "something without a type"
            hint = "Check the URL: that of an OpenAI server mostly ends in /v1."
            return ServerUnavailable(f"{self.name} answered with {what}, not with a stream of events.", hint=hint)
        said = "" if kind == "text/html" else self._line(message_of(_json(data)) or data.decode("utf-8", "replace"))
        message, wait_s = f"{self.name} answered {status} {response.reason_phrase}".rstrip(), None
        if status == _TOO_MANY or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            wait_s = _seconds(response.headers.get("Retry-After"))
        message += f", to wait {wait_s:,.0f} s" if wait_s else ""
        message += f": {said}" if said else "."
        if response.is_redirect:
            target = urlsplit(response.headers.get("Location", ""))
            place = urlunsplit((target.scheme, target.netloc.rpartition("@")[2], target.path, "", ""))
            hint = f"Nothing is sent there unasked. If it is right, give it as --endpoint: {self._line(place)}"
            return ServerUnavailable(f"{self.name} redirects to another place ({status}).", hint=hint)
        if status in _DENIED:
            return AccessDenied(message, hint=self._about_token())
        if status == httpx.codes.NOT_FOUND:
            return await self._not_found(message, path, model)
        if status == _TOO_MANY or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            hint = "Try again later; the server's log may say more."
            if status == _TOO_MANY:
                hint = "Try again later, or with a smaller --batch-size."
            # Some servers fail so for what is wrong with one request.
            kind_of = Retryable if status == httpx.codes.INTERNAL_SERVER_ERROR else Unavailable
            return kind_of(message, hint=hint, wait_s=wait_s)
        if _TOO_LONG.search(data.decode("utf-8", "replace")):
            hint = "Shorten the prompt, ask for fewer tokens (-n), or choose a model with a longer context."
            return ContextLengthError(message, hint=hint)
        return BackendError(message, hint="The server does not take this request: leave out what it names.")

    def _about_token(self) -> str:
        another = "another" if self.token else "one"
        where = f"Ask the server's operator for {another}, and set it as {TOKEN}."
        if self.address.is_hugging_face:
            where = f"Make {another} at https://huggingface.co/settings/tokens, then `hf auth login` or set HF_TOKEN."
        if self.token:
            return f"The token in {self.token.name} was sent: check that it is right and may use this model. {where}"
        return f"No token was sent. {where}"

    async def _not_found(self, message: str, path: str, model: str) -> HFPipeError:
        """Whether it is the model or the place that does not exist, by the models that the server lists."""
        known: list[str] | None = None
        with suppress(BackendError):
            match await self._get("models"):
                case {"data": list(models)}:
                    known = [str(one["id"]) for one in models if isinstance(one, dict) and "id" in one]
        if path != CHAT and (known is None or model in known):
            hint = "The server may take conversations only (--template chat), or the URL is wrong."
            return ServerUnavailable(message, hint=hint)
        if known is None:
            return ServerUnavailable(message, hint="Check the URL: that of an OpenAI server mostly ends in /v1.")
        if model in known:
            return BackendError(message, hint="The server has this model; its log may say what failed.")
        more = f", and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
        listed = self._line(f"It has: {', '.join(known[:_LISTED]) or 'none'}{more}.")
        hint = self._line(nearest(model, known) or "") or listed
        return ModelNotFound(f"{self.name} has no model {model!r}.", hint=hint)

    async def _get(self, path: str) -> Any:
        """The JSON at a path; None where there is none. Raises BackendError where the server cannot be asked."""
        try:
            response = await self._client.get(self.address.of(path))
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        return _json(response.content) if response.status_code == httpx.codes.OK else None

    def _broken(self, error: httpx.HTTPError) -> BackendError:
        """It is not the cause of what it becomes: the values in its traceback hold the token."""
        reason = self._line(str(error)) or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
            hint = "Check the URL, and whether the server runs and can be reached from here."
            return Unavailable(f"{self.name} cannot be reached: {reason}", hint=hint)
        if isinstance(error, httpx.TimeoutException):
            hint = "The server may be overloaded: its log may say more."
            return ServerUnavailable(f"{self.name} sent nothing for {self._idle_s:g} s.", hint=hint)
        hint = "Run it again; the server's log may say why."
        return Unavailable(f"{self.name} broke off: {reason}", hint=hint)

    def _line(self, text: str) -> str:
        """What a server says, in a bounded line and without the token."""
        line = " ".join((self.token.hide(text) if self.token else text).split())
        return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


async def _rest(pieces: AsyncIterator[bytes]) -> None:
    """Read to the end: only then can the connection be used again."""
    async for _ in pieces:
        pass


def _seconds(header: str | None) -> float | None:
    """Of Retry-After: a number, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
