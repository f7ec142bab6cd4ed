"""The values of a record, checked. Everything here raises a UsageError for what hfpipe does not take.

Null means "not given", everywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from hfpipe.errors import UnsupportedOption, UsageError
from hfpipe.types import GenerationOptions

_ALIASES = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}
_WHOLE = ("max_tokens", "top_k", "seed")
OVERRIDES = frozenset({field.name for field in dataclasses.fields(GenerationOptions)} | _ALIASES.keys())

# What other engines take and hfpipe does not, with the values that ask for nothing.
_ELSEWHERE: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "do_sample": (),
    "frequency_penalty": (0,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "presence_penalty": (0,),
    "typical_p": (1,),
}
# Of a request to a server. Their names are too common to mean the same among the variables of a template.
_OF_REQUESTS: Mapping[str, tuple[Any, ...]] = {
    "echo": (False,),
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
# They say who asks, how the answer travels or what it costs, and nothing of its text.
_HARMLESS = frozenset(
    [
        "metadata",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    ]
)
# Two names that differ by a letter of ten are the same word.
_SAME = 0.9
_KINDS = {str: "text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of GenerationOptions, checked for type and range."""
    checked: dict[str, Any] = {}
    for name, value in given.items():
        option = _ALIASES.get(name, name)
        one = _stops(value) if option == "stop" else _number(name, value, whole=option in _WHOLE)
        if checked.setdefault(option, one) != one:
            raise UsageError(f"{option} is given twice, as {checked[option]} and as {one}.")
    if checked:
        GenerationOptions(**checked)
    return checked


def _number(name: str, value: Any, *, whole: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, not {kind(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be a number, not {json.dumps(value)}.")
    if not whole:
        return value
    if isinstance(value, float) and not value.is_integer():
        raise UsageError(f"{name} must be a whole number, not {value}.")
    return int(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise UsageError("stop must be text or a list of texts.")
    return tuple(well_formed(stop) for stop in stops)


def request_overrides(given: Mapping[str, Any], but: Collection[str]) -> dict[str, Any]:
    """The overrides of a request, in which every name `but` some has a meaning: what would change the answer is not
    dropped in silence."""
    for name, value in given.items():
        if name not in OVERRIDES and name not in but and not _asks_nothing(name, value):
            raise UnsupportedOption(f"hfpipe does not take {name}{_as(name, value)}.{_meant(name)}")
    return overrides({name: value for name, value in given.items() if name in OVERRIDES})


def _asks_nothing(name: str, value: Any) -> bool:
    return name in _HARMLESS or value in _ELSEWHERE.get(name, ()) or value in _OF_REQUESTS.get(name, ())


def refuse_misspelt(name: str, value: Any) -> None:
    """Of a record in which any name may be a variable: what can only be meant as an option."""
    if name in _ELSEWHERE and value not in _ELSEWHERE[name]:
        raise UnsupportedOption(f"hfpipe does not take {name}{_as(name, value)}.")
    if hint := _meant(name):
        raise UnsupportedOption(f"There is no option {name}.{hint}")


def _as(name: str, value: Any) -> str:
    known = name in _ELSEWHERE or name in _OF_REQUESTS
    return f" = {json.dumps(value)}" if known and not isinstance(value, list | dict) else ""


@lru_cache(maxsize=1024)
def _meant(name: str) -> str:
    """The option that `name` misspells: maxTokens, max-tokens, max_token."""
    plain = {option.replace("_", ""): option for option in sorted(OVERRIDES)}
    bare = name.lower().replace("_", "").replace("-", "")
    close = difflib.get_close_matches(bare, plain, n=1, cutoff=_SAME)
    return f" Did you mean {plain[close[0]]}?" if close else ""


def conversation(value: Any, roles: Collection[str] = ()) -> tuple[Mapping[str, str], ...]:
    """Messages of role and content, and a name where one has it. Parts of text are joined, as LangChain joins them.

    Without `roles`, a role is any word: the chat template knows which it takes.
    """
    if not isinstance(value, list) or not value:
        raise UsageError("messages must be a list of at least one message.")
    return tuple(_message(f"messages[{i}]", message, roles) for i, message in enumerate(value))


def _message(place: str, value: Any, roles: Collection[str]) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise UsageError(f"{place} must be an object, not {kind(value)}.")
    given = {name: part for name, part in value.items() if part is not None and part != []}
    for name in given:
        if name not in ("role", "content", "name"):
            raise UnsupportedOption(f"{place} has {name}, which hfpipe does not take.")
    role = given.get("role")
    if not isinstance(role, str) or not role:
        raise UsageError(f"{place} has no role.")
    if roles and role not in roles:
        raise UsageError(f"{place} has the role {role}; known are {', '.join(roles)}.")
    message = {"role": role, "content": _content(place, given.get("content"))}
    return message | ({"name": text(f"{place}.name", given["name"])} if "name" in given else {})


def _content(place: str, value: Any) -> str:
    if not isinstance(value, list):
        return text(f"{place}.content", value)
    return "".join(_part(f"{place}.content[{i}]", part) for i, part in enumerate(value))


def _part(place: str, value: Any) -> str:
    if not isinstance(value, dict) or value.get("type") != "text":
        found = value.get("type") if isinstance(value, dict) else kind(value)
        raise UnsupportedOption(f"{place} is {found}, and hfpipe takes text alone.")
    return text(f"{place}.text", value.get("text"))


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be text, not {kind(value)}.")
    return well_formed(value)


def variable(name: str, value: Any) -> str:
    """Text as it is; a number or a boolean as JSON writes it."""
    if isinstance(value, list | dict):
        raise UsageError(f"{name} must be text or a number, not {kind(value)}.")
    return well_formed(value) if isinstance(value, str) else json.dumps(value)


def well_formed(text: str) -> str:
    """`text` with half characters (lone surrogates, which JSON can hold and a tokenizer does not take) as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def kind(value: Any) -> str:
    """What JSON calls it."""
    return _KINDS.get(type(value), "null")
