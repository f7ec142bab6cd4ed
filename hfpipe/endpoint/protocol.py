"""The OpenAI protocol as values: what a request holds, and what the events of its answer say."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hfpipe.errors import BackendError
from hfpipe.sampling import setting
from hfpipe.text.templates import Conversation
from hfpipe.types import FinishReason, Sampling, TextRequest, Usage

CHAT, TEXT = "chat/completions", "completions"
DONE = "[DONE]"
# Every server takes these.
_PLAIN = ("temperature", "top_p", "seed")
# What only some servers take, by their name for it, with what it is called here.
_OWN = {
    "top_k": "top_k (--top-k)",
    "min_p": "min_p (--min-p)",
    "repetition_penalty": "repetition_penalty (--repetition-penalty)",
    "eos_token_id": "eos_token_id",
    "max_length": "max_length, which counts the prompt's tokens",
    "chat_template_kwargs": "variables of the chat template (--var)",
    "continue_final_message": "a last message of the assistant, to be continued",
    "add_generation_prompt": "a last message of the assistant, to be continued",
    "add_special_tokens": "add_special_tokens=False",
}
# What servers take of them that publish no openapi.json: by owner of their models, their names by those here.
_BY_OWNER = {
    "llamacpp": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"},
    "vllm": {name: name for name in ("top_k", "min_p", "repetition_penalty")},
}
# OpenAI's own limit; some servers refuse more. All of them are looked for here anyway.
_MOST_STOPS = 4
# Some servers' words for the same.
_REASONS: Mapping[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "max_tokens"), "length"),
}
# Ends that leave the answer unfinished, and what they say.
_UNFINISHED = {
    "content_filter": "The server's filter ended the answer.",
    **dict.fromkeys(("tool_calls", "function_call"), "The model called a tool, and hfpipe offers it none."),
}
# No event is as long as that many characters: a server that never ends a line would fill the memory.
_LONGEST = 16_000_000
_LINE_END = re.compile("\r\n|\n|\r")


class EventReader:
    """Server-sent events: bytes in, however they are cut, the data of each finished event out."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        # Of the unfinished line, and the lines of data of the unfinished event; how many characters they have.
        self._pieces: list[str] = []
        self._data: list[str] = []
        self._line_length = self._data_length = 0
        # Whether the last line ended in a \r, of which a \n that follows is the second half.
        self._returned = False

    def feed(self, data: bytes) -> Iterator[str]:
        """Raises BackendError where an event has no end."""
        text = self._decode(data)
        if self._returned and text:
            text = text.removeprefix("\n")
            self._returned = False
        self._returned = self._returned or text.endswith("\r")
        for number, piece in enumerate(_LINE_END.split(text)):
            if number:
                yield from self._end_line()
            self._pieces.append(piece)
            self._line_length += len(piece)
            if self._line_length + self._data_length > _LONGEST:
                raise BackendError(f"an event of more than {_LONGEST:,} characters")

    def _end_line(self) -> Iterator[str]:
        line = "".join(self._pieces)
        self._pieces, self._line_length = [], 0
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
            self._data_length += len(value)
        elif not line and self._data:
            yield "\n".join(self._data)
            self._data, self._data_length = [], 0


@dataclass(frozen=True, slots=True)
class Part:
    """What one event adds to an answer; `unfinished` says why one with the finish_reason "error" has no more."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    unfinished: str = ""


def part(data: str) -> Part:
    """What the data of an event says. Raises BackendError, which says what is wrong with it."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise BackendError("an event that is not JSON") from None
    match event:
        case {"error": error} if error:
            raise BackendError(f"an error: {message_of(event)}")
        case {"choices": list(choices)}:
            choice = choices[0] if choices else {}
        case _:
            raise BackendError("an event without choices, which is not of the OpenAI protocol")
    match choice:
        case {"delta": {"content": str(text)}} | {"text": str(text)}:
            pass
        case {}:
            # A role, reasoning, or nothing.
            text = ""
        case _:
            raise BackendError("an event with a choice that is not of the OpenAI protocol")
    usage = None
    match event.get("usage"):
        case {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}:
            usage = Usage(prompt, completion)
    said = choice.get("finish_reason")
    if not said:
        return Part(text, usage=usage)
    if said in _UNFINISHED:
        return Part(text, "error", usage, _UNFINISHED[said])
    if said not in _REASONS:
        raise BackendError(f"an unknown finish_reason, {said!r}")
    return Part(text, _REASONS[said], usage)


def message_of(error: Any) -> str:
    """What a server says in an answer that is an error, in any of the usual forms; "" where it says nothing."""
    match error:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)} | {"detail": str(text)}:
            return text
        case {"detail": [{"msg": str(text)}, *_]}:
            return text
    return ""


def own_options(request: TextRequest) -> dict[str, Any]:
    """What of a request is no part of the plain protocol, as the servers that take it call it."""
    names, prompt = ["top_k", "min_p", "repetition_penalty", "eos_token_id"], request.prompt
    if request.options.max_tokens is None:
        names.append("max_length")
    own = {name: value for name in names if (value := getattr(request.options, name)) is not None}
    if not isinstance(prompt, Conversation):
        return own if request.add_special_tokens else {**own, "add_special_tokens": False}
    if prompt.variables:
        own["chat_template_kwargs"] = dict(prompt.variables)
    if prompt.messages[-1]["role"] == "assistant":
        own |= {"continue_final_message": True, "add_generation_prompt": False}
    return own


def meaning(name: str) -> str:
    """What one of `own_options` is called here."""
    return _OWN[name]


def names_by_owner(models: Any) -> Mapping[str, str]:
    """By the names of `own_options`, what the server that lists these `models` calls those that it takes; empty where
    it is none of _BY_OWNER."""
    match models:
        case {"data": [{"owned_by": str(owner)}, *_]}:
            return _BY_OWNER.get(owner, {})
    return {}


def is_off(name: str, value: Any) -> bool:
    """Whether one of `own_options` asks for nothing."""
    return bool(value == getattr(Sampling(), name, None))


def is_empty(prompt: str) -> bool:
    """Of a conversation: whether it has nothing beside the system's words."""
    if isinstance(prompt, Conversation):
        return not any(one["content"] for one in prompt.messages if one["role"] != "system")
    return not prompt


def body(model: str, request: TextRequest, seed: int | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """What is posted to CHAT for a conversation, and to TEXT for other prompts; `own` are those of `own_options` that
    the server takes, by its names."""
    options, prompt = request.options, request.prompt
    asked = {"messages": list(prompt.messages)} if isinstance(prompt, Conversation) else {"prompt": prompt}
    given = {name: value for name in _PLAIN if (value := getattr(options, name)) is not None}
    given |= own
    if "repeat_penalty" in own:
        # Over the whole text, and not the last 64 tokens.
        given["repeat_last_n"] = -1
    if seed is not None:
        given["seed"] = seed
    if options.stop:
        given["stop"] = list(options.stop[:_MOST_STOPS])
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, **asked, "max_tokens": setting("max_tokens", options, {}), **given, **streamed}


def schema_properties(openapi: Any, path: str) -> frozenset[str]:
    """The names that a request to `path` may have, by the server's own openapi.json."""
    found = set[str]()

    def collect(schema: Any) -> None:
        match schema:
            case {"$ref": str(place)}:
                collect(openapi.get("components", {}).get("schemas", {}).get(place.rpartition("/")[2]))
            case {"properties": dict(properties)}:
                found.update(properties)
        if isinstance(schema, dict):
            for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
                collect(one)

    match openapi:
        case {"paths": dict(paths)}:
            for name, methods in paths.items():
                match methods:
                    case {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}:
                        if name.endswith(f"/v1/{path}"):
                            collect(schema)
    return frozenset(found)
