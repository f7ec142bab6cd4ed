"""What the files of a model may say, checked once where they are read: an error names the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, RootModel, ValidationError
from pydantic_core import from_json

from hfpipe.errors import ModelError

AGAIN = "The file looks half-downloaded or half-copied: fetch it again."
_SHORT = 60


def _chat_templates(value: Any) -> Any:
    """A template, a list of {name, template}, or a dict by name."""
    named = value if isinstance(value, dict) else {"default": value}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        named = {item.get("name"): item.get("template") for item in value}
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise ValueError("must be a text, or a list of objects with name and template")
    return value


_ONE_OR_MORE = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_TokenIds = Annotated[list[_TokenId], _ONE_OR_MORE] | None
_Count = _TokenId | None
_Token = Annotated[str, BeforeValidator(lambda value: value.get("content") if isinstance(value, dict) else value)]
# Loops run over layers.
_Layers = Annotated[int, Field(ge=0, le=10_000)] | None


class AnyObject(BaseModel):
    """Keys that are not named here may be anything; null is the same as no entry."""

    # The two or three that a start needs are built, which takes a third of the import.
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=(), defer_build=True)


class Config(AnyObject):
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
    max_position_embeddings: int | None = None
    quantization_config: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    text_config: Config | None = None
    decoder_start_token_id: _Count = None
    task_specific_params: dict[str, dict[str, Any]] | None = None


class GenerationConfig(AnyObject):
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
    decoder_start_token_id: _Count = None
    forced_bos_token_id: _Count = None
    forced_eos_token_id: _Count = None
    bad_words_ids: list[Annotated[list[_TokenId], Field(min_length=1)]] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    max_length: _Count = None
    min_length: _Count = None
    min_new_tokens: _Count = None
    no_repeat_ngram_size: _Count = None
    encoder_no_repeat_ngram_size: _Count = None
    stop_strings: Annotated[list[Annotated[str, Field(min_length=1)]], _ONE_OR_MORE] | None = None


class _AddedToken(AnyObject):
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    single_word: bool = False


class TokenizerConfig(AnyObject):
    """tokenizer_config.json, chat_template.json and special_tokens_map.json."""

    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], _AddedToken] | None = None
    bos_token: _Token | None = None
    eos_token: _Token | None = None
    chat_template: Annotated[Any, AfterValidator(_chat_templates)] | None = None


class AddedTokens(RootModel[dict[str, _TokenId]]):
    """added_tokens.json."""


class WeightIndex(AnyObject):
    """model.safetensors.index.json: the file that holds each tensor."""

    weight_map: dict[str, Annotated[str, Field(min_length=1, max_length=255)]]


def read_object(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """The JSON object in `path`, as it is there. Raises ModelError with the file, and with the key that breaks
    `schema`."""
    try:
        # It refuses what is nested too deeply.
        value = from_json(read_text(path))
        if isinstance(value, dict):
            schema.model_validate(value, strict=True)
            return value
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = _short(" ".join(".".join(str(part) for part in first["loc"][:4]).split()))
        said = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        said += f", not {_short(json.dumps(first['input'], default=str))}"
        raise ModelError(f"{path}: {key} {'is missing' if first['type'] == 'missing' else said}.") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}.", hint=AGAIN) from error
    raise ModelError(f"{path} holds no JSON object.", hint=AGAIN)


def read_text(path: Path) -> str:
    """Raises ModelError where the file cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text (byte {error.start:,}).", hint=AGAIN) from error


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
