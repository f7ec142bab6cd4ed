"""What the files of a model may say, checked once where they are read: an error names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hfpipe.errors import ModelError

AGAIN = "The file looks half-downloaded or half-copied: fetch it again."
_SHORT = 60
# Real files have fewer than 10 levels; json itself gives up near 1,000, others earlier.
_DEEPEST = 64
_LONGEST_NAME = 255


def _token_ids(value: Any) -> Any:
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in ids):
        raise ValueError("must be a token id or a list of token ids")
    return value


def _text_or_texts(value: Any) -> Any:
    if not all(isinstance(one, str) and one for one in (value if isinstance(value, list) else [value])):
        raise ValueError("must be a text or a list of texts")
    return value


def _chat_templates(value: Any) -> Any:
    """A template, a list of {name, template}, or a dict by name."""
    named = value
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        named |= {None: None} if len(named) < len(value) else {}
    elif isinstance(value, str):
        named = {"default": value}
    if not isinstance(named, dict) or not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise ValueError("must be a text, or a list of objects with name and template")
    return value


_TokenIds = Annotated[Any, AfterValidator(lambda value: None if value is None else _token_ids(value))]
_Count = Annotated[int, Field(ge=0, lt=2**31)] | None
# Loops run over layers.
_Layers = Annotated[int, Field(ge=0, le=10_000)] | None


class _File(BaseModel):
    """Keys that are not named here may be anything; null is the same as no entry."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class _Config(_File):
    """config.json."""

    architectures: list[str] | None = None
    model_type: str | None = None
    is_encoder_decoder: bool | None = None
    eos_token_id: _TokenIds = None
    bos_token_id: _TokenIds = None
    pad_token_id: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    vocab_size: _Count = None
    num_hidden_layers: _Layers = None
    n_layer: _Layers = None
    n_layers: _Layers = None
    num_layers: _Layers = None
    hidden_size: _Count = None
    quantization_config: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    text_config: _Config | None = None


class _GenerationConfig(_File):
    """generation_config.json; the ranges are those of GenerationOptions."""

    eos_token_id: _TokenIds = None
    bos_token_id: _TokenIds = None
    do_sample: bool | None = None
    max_new_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: _Count = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_strings: Annotated[Any, AfterValidator(lambda value: value if value is None else _text_or_texts(value))] = None


class _AddedToken(_File):
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    single_word: bool = False


class _TokenizerConfig(_File):
    """tokenizer_config.json, chat_template.json and special_tokens_map.json."""

    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], _AddedToken] | None = None
    chat_template: Annotated[Any, AfterValidator(lambda value: value if value is None else _chat_templates(value))] = (
        None
    )


class _WeightIndex(_File):
    """model.safetensors.index.json: the file that holds each tensor."""

    weight_map: dict[str, Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]]


class _Tensor(_File):
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


CONFIG = TypeAdapter[Any](_Config)
GENERATION_CONFIG = TypeAdapter[Any](_GenerationConfig)
TOKENIZER_CONFIG = TypeAdapter[Any](_TokenizerConfig)
WEIGHT_INDEX = TypeAdapter[Any](_WeightIndex)
# The header of a safetensors file, without __metadata__.
TENSORS = TypeAdapter[Any](dict[str, _Tensor])
# added_tokens.json.
ADDED_TOKENS = TypeAdapter[Any](dict[str, Annotated[int, Field(ge=0, lt=2**31)]])
ANY_OBJECT = TypeAdapter[Any](dict[str, Any])


def read_object(path: Path, schema: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON object in `path`, as it is there. Raises ModelError with the file, and with the key that breaks
    `schema`."""
    return parse_object(read_text(path), path, schema)


def read_text(path: Path) -> str:
    """Raises ModelError where the file cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text (byte {error.start:,}).", hint=AGAIN) from error


def parse_object(text: str | bytes, path: Path, schema: TypeAdapter[Any]) -> dict[str, Any]:
    """As read_object, for a text that was read from `path`."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply.") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}.", hint=AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.", hint=AGAIN)
    if _deeper(value, _DEEPEST):
        raise ModelError(f"{path} is nested too deeply.")
    value.pop("__metadata__", None)
    check(value, path, schema)
    return value


def check(value: Mapping[str, Any], path: Path | str, schema: TypeAdapter[Any]) -> None:
    """Raise ModelError with `path` and the first key of `value` that breaks `schema`."""
    try:
        schema.validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"][:4])
        missing = first["type"] == "missing"
        said = "is missing" if missing else first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        got = "" if missing else f", not {_shown(first['input'])}"
        raise ModelError(f"{path}: {_shown(key, quote=False)} {said}{got}.") from error


def _deeper(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_deeper(child, levels - 1) for child in children if isinstance(child, (dict, list)))


def _shown(value: Any, *, quote: bool = True) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str) if quote else " ".join(str(value).split())
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
