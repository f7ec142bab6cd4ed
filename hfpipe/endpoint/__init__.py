"""The same verb over a hosted server of the OpenAI protocol: text in, text events out.

The connections live in an event loop of a thread, so that many answers come at once, and that each can be ended at any
moment. What is asked is pulled by whoever reads the answers.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

from hfpipe.backends.base import as_backend_error
from hfpipe.endpoint.address import Address
from hfpipe.endpoint.protocol import CHAT, TEXT, body, is_empty, is_off, meaning, own_options
from hfpipe.endpoint.server import Server
from hfpipe.errors import BackendError, HFPipeError, ServerUnavailable, UnsupportedOption, UsageError
from hfpipe.generator import FailedRequest, TextGenerator, open_generator
from hfpipe.process import start_thread
from hfpipe.sampling import resolve_sampling
from hfpipe.text.decoder import StopScanner
from hfpipe.text.templates import Conversation
from hfpipe.types import BackendInfo, HostedModel, LoadOptions, TextEvent, TextRequest, Timing

# How long a request may take.
_TIMEOUT_S = 600.0
# While no request is ready, how often one is asked for.
_ASK_S = 0.05
# How long the connections may take to be closed.
_END_S = 5.0
_NO_MORE: Any = object()
_numbers = itertools.count()


def find(reference: str, options: LoadOptions) -> HostedModel:
    """The model that a server calls `reference`. Nothing is asked yet. Raises UsageError for a wrong URL."""
    return HostedModel(reference, Address(options.endpoint).shown)


class Endpoint(TextGenerator):
    """A model that a server runs, and that answers prompts as a loaded one does."""

    tokenizer = None
    batch_size = 8

    def __init__(self, source: HostedModel, options: LoadOptions, *, why: str = "", load_s: float = 0.0) -> None:
        address = Address(options.endpoint)
        self.source = source
        self.loading = options
        self.why = why
        self.load_s = load_s
        self.info = BackendInfo("endpoint", address.host, "unknown", {"url": address.shown})
        self.batch_size = options.batch_size or self.batch_size
        self._timeout_s = options.timeout or _TIMEOUT_S
        self._server = Server(address, self._timeout_s)
        self._loop = asyncio.new_event_loop()
        thread = start_thread(_run, self._loop)
        # Also for one that nobody closed.
        self._end = weakref.finalize(self, _end, self._loop, thread, self._server)

    def stream(self, requests: Iterable[TextRequest | None]) -> Iterator[TextEvent]:
        if not self._end.alive:
            raise _closed()
        events: SimpleQueue[tuple[int, TextEvent]] = SimpleQueue()
        flights: dict[int, Future[None]] = {}
        source, ended = iter(requests), False
        try:
            while flights or not ended:
                wait_s = None
                while not ended and len(flights) < self.batch_size:
                    request = next(source, _NO_MORE)
                    ended = request is _NO_MORE
                    if request is None:
                        wait_s = _ASK_S
                        break
                    if not ended:
                        number = next(_numbers)
                        flights[number] = self._send(number, request, events.put)
                if not flights:
                    continue
                try:
                    number, event = events.get(timeout=wait_s)
                except Empty:
                    continue
                if event.finish_reason is not None:
                    del flights[number]
                yield event
        finally:
            for flight in flights.values():
                flight.cancel()

    def close(self) -> None:
        self._end()

    def __reduce__(self) -> Any:
        """Unpickling connects again, with the token of where that is done."""
        return open_generator, (self.source.reference, self.loading)

    def _send(self, number: int, request: TextRequest, put: Callable[[tuple[int, TextEvent]], None]) -> Future[None]:
        """Have the loop answer a request; its last event comes whatever happens."""

        async def answer() -> None:
            try:
                if isinstance(request, FailedRequest):
                    raise request.error
                await asyncio.wait_for(self._answer(request, tell), self._timeout_s)
            except asyncio.CancelledError:
                tell(TextEvent(request.id, finish_reason="error", error=_closed()))
                raise
            # One failed request is an event, and the others go on.
            except Exception as error:
                tell(TextEvent(request.id, finish_reason="error", error=self._translated(error)))

        def tell(event: TextEvent) -> None:
            put((number, event))

        if not self._end.alive:
            tell(TextEvent(request.id, finish_reason="error", error=_closed()))
            return Future()
        return asyncio.run_coroutine_threadsafe(answer(), self._loop)

    async def _answer(self, request: TextRequest, tell: Callable[[TextEvent], None]) -> None:
        """Tell the events of an answer as they come. Raises an HFPipeError."""
        if request.options.do_sample is not None:
            temperature = resolve_sampling(request.options, self.source.generation_config).temperature
            request = replace(request, options=replace(request.options, temperature=temperature))
        start, options = time.perf_counter(), request.options
        path = CHAT if isinstance(request.prompt, Conversation) else TEXT
        own = await self._own(request, path)
        seed = options.seed
        if seed is None and options.temperature:
            seed = random.SystemRandom().getrandbits(31)
        scanner, first, last = StopScanner(options.stop), 0.0, 0.0
        usage = reason = None
        stopped, unfinished = False, ""
        async with aclosing(self._server.parts(path, body(self.source.reference, request, seed, own))) as parts:
            try:
                async for one in parts:
                    usage, reason = one.usage or usage, one.finish_reason or reason
                    unfinished = one.unfinished or unfinished
                    if one.text:
                        last = time.perf_counter()
                        first = first or last
                        text, stopped = scanner.feed(one.text)
                        if text:
                            tell(TextEvent(request.id, text))
                        if stopped:
                            break
            except HFPipeError:
                # Where the answer is whole, only the usage can be missing.
                if reason is None:
                    raise
        if not stopped and reason is None:
            hint = "Run it again; the server's log may say why."
            raise ServerUnavailable(f"{self._server.name} ended the stream before the answer was finished.", hint=hint)
        rest = "" if stopped else scanner.feed("", True)[0]
        timing = Timing(start, first or start, last or start)
        seed = seed if options.temperature != 0 else None
        error = None
        if unfinished and not stopped:
            error = BackendError(unfinished, hint="Ask in other words, or another model.")
        tell(TextEvent(request.id, rest, "stop" if stopped else reason, usage, timing, error, seed))

    async def _own(self, request: TextRequest, path: str) -> dict[str, Any]:
        """What is sent beside the plain protocol. Raises an HFPipeError for what the server cannot honour."""
        if is_empty(request.prompt):
            raise UsageError("The prompt is empty.")
        if path == TEXT and self._server.address.is_hub:
            raise UnsupportedOption(
                "The Hub's inference providers take conversations only.",
                hint="Use --template chat, or name a server with --endpoint URL.",
            )
        own = own_options(request)
        taken = await self._server.takes(path) if own else {}
        for name in own.keys() - taken:
            if not is_off(name, own[name]):
                raise UnsupportedOption(
                    f"{self._server.name} cannot honour {meaning(name)}.",
                    hint="Leave it out: the server's openapi.json does not say that it takes that.",
                )
        return {taken[name]: own[name] for name in own.keys() & taken}

    def _translated(self, error: Exception) -> HFPipeError:
        """Without the traceback of the loop, whose values are what the server sent."""
        if isinstance(error, asyncio.TimeoutError):
            return BackendError(
                f"{self._server.name} did not finish the answer in {self._timeout_s:g} s.",
                hint="Ask for fewer tokens (-n), or give it a longer --timeout.",
            )
        return as_backend_error(error).with_traceback(None)


def _closed() -> BackendError:
    return BackendError("The endpoint backend has been closed.")


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread, server: Server) -> None:
    """End all connections, and the thread."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    # The garbage collector may call this in any thread.
    if threading.current_thread() is not thread:
        thread.join(_END_S)
