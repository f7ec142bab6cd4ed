"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import tokenizers

from hfpipe import schema
from hfpipe.errors import UnsupportedModel

if TYPE_CHECKING:
    from pydantic import BaseModel

_TOKEN_OPTIONS = ("special", "lstrip", "rstrip", "normalized", "single_word")
_FILE = "tokenizer.json"
_SOURCES = (_FILE, "tokenizer_config.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")


@dataclass(eq=False)
class Tokenizer:
    """A model's tokenizer. `special_tokens` maps names such as bos_token to their text, for chat templates;
    `chat_templates` holds these by name, an only one as "default".

    `engine` is a tokenizers.Tokenizer, whose truncation and padding are switched off, or has the same methods.
    """

    engine: Any
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.engine, tokenizers.Tokenizer):
            self.engine.no_truncation()
            self.engine.no_padding()

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """All of `text` as ids. Half a surrogate pair, as JSON may hold one, is read as U+FFFD."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return tuple(self.engine.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens and without tidying of spaces."""
        text: str = self.engine.decode(list(ids), skip_special_tokens=True)
        return text

    def special_id(self, text: str) -> int | None:
        """The id of the special or added token that is exactly `text`."""
        return self.added_tokens.get(text)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(number for number, token in self.engine.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included. A model may have more ids than that: they have no text."""
        return int(self.engine.get_vocab_size())

    @cached_property
    def byte_values(self) -> Mapping[int, int]:
        """Ids that stand for one byte each, as in SentencePiece's byte fallback; empty where there are none."""
        ids = [self.engine.token_to_id(f"<0x{value:02X}>") for value in range(256)]
        letter = ids[ord("A")]
        # Where bytes are not spelled so, such a name can still be in a vocabulary, as text.
        if letter is None or self.decode([letter]) != "A":
            return {}
        return {token_id: value for value, token_id in enumerate(ids) if token_id is not None}

    def has_text(self, token_id: int) -> bool:
        return token_id not in self.special_ids and self.engine.id_to_token(token_id) is not None

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        """The ids of special and added tokens."""
        return {token.content: number for number, token in self.engine.get_added_tokens_decoder().items()}


class _PythonTokenizer:
    """A transformers tokenizer without a tokenizers.Tokenizer inside, with the methods of one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Those of languages, which M2M-100 has beside its vocabulary.
        self._languages: dict[str, int] = getattr(tokenizer, "lang_token_to_id", {})
        self._ids: dict[str, int] = {**tokenizer.get_vocab(), **self._languages}
        self._tokens = {token_id: token for token, token_id in self._ids.items()}
        self.token_to_id, self.id_to_token = self._ids.get, self._tokens.get

    def encode(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        # verbose would warn of a prompt beyond model_max_length, which the generator judges.
        options = {"truncation": False, "padding": False, "verbose": False}
        return SimpleNamespace(ids=self._tokenizer.encode(text, add_special_tokens=add_special_tokens, **options))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool) -> Any:
        options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        return self._tokenizer.decode([token_id for token_id in ids if token_id in self._tokens], **options)

    def get_added_tokens_decoder(self) -> dict[int, SimpleNamespace]:
        special = dict(zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True))
        special |= self._languages
        added = {**self._tokenizer.get_added_vocab(), **special}
        return {number: SimpleNamespace(content=text, special=text in special) for text, number in added.items()}

    def get_vocab_size(self) -> int:
        return len(self._ids)


def require_tokenizer(folder: Path) -> None:
    """Raise UnsupportedModel where a model folder has nothing that a tokenizer could be made of."""
    if not any(any(folder.glob(pattern)) for pattern in _SOURCES):
        hint = "Copy tokenizer.json of the original model into that folder."
        raise UnsupportedModel(f"There is no tokenizer in {folder}.", hint=hint)


def is_read_alone(folder: Path) -> bool:
    """Whether the tokenizer in a model folder is read without transformers."""
    return (folder / _FILE).is_file()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model folder: its tokenizer.json, else whatever transformers can make of the folder.

    Raises UnsupportedModel if it is missing or unreadable.
    """
    if is_read_alone(folder):
        return _from_file(folder / _FILE)
    require_tokenizer(folder)
    try:
        # It takes seconds, and most folders have a tokenizer.json.
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    # Tokenizer classes raise whatever their parsers do: OSError, ValueError, ImportError, TypeError, ...
    except Exception as error:
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"transformers cannot load the tokenizer in {folder}: {detail}"
        hint = "Put a tokenizer.json there, or, if you trust the code of the model, add --trust-remote-code."
        raise UnsupportedModel(message, hint=hint) from error
    return from_transformers(loaded)


def from_transformers(tokenizer: Any) -> Tokenizer:
    """A Tokenizer over an existing transformers tokenizer, fast or slow, which it leaves as it is."""
    if tokenizer.is_fast:
        # A copy, since transformers switches the truncation of its own on and off as it is called.
        engine = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    else:
        engine = _PythonTokenizer(tokenizer)
    return Tokenizer(engine, _texts(tokenizer.special_tokens_map), _named_templates(tokenizer.chat_template))


def _from_file(file: Path) -> Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    # The library raises a bare Exception for a file it cannot read.
    except Exception as error:
        hint = "It may be half downloaded, or newer than the installed tokenizers."
        raise UnsupportedModel(f"Cannot read {file}: {error}", hint=hint) from error
    config = _read(file.with_name("tokenizer_config.json"), schema.TokenizerConfig)
    special_tokens = _texts(config)
    # As in transformers, special_tokens_map.json counts only in old folders.
    if "added_tokens_decoder" not in config:
        special_tokens |= _texts(_read(file.with_name("special_tokens_map.json"), schema.AnyObject))
    _add_tokens(tokenizer, file.parent, config)
    # Special is also what only the configuration calls so, as in transformers; the vocabulary stays as it is.
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = set(special_tokens.values()) - added
    tokenizer.add_special_tokens([text for text in missing if tokenizer.token_to_id(text) is not None])
    return Tokenizer(tokenizer, special_tokens, _chat_templates(file.parent, config))


def _texts(entries: Mapping[str, Any]) -> dict[str, str]:
    """The entries named ..._token that are a text, or an object with one; `add_bos_token` is a flag."""
    contents = {name: entry.get("content") if isinstance(entry, dict) else entry for name, entry in entries.items()}
    return {name: text for name, text in contents.items() if name.endswith("_token") and isinstance(text, str)}


def _add_tokens(tokenizer: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Add the tokens that only the configuration lists, in the order of their ids, as transformers does."""
    listed = config.get("added_tokens_decoder")
    if listed is None:
        added = _read(folder / "added_tokens.json", schema.AddedTokens)
        listed = {number: {"content": text, "normalized": False} for text, number in added.items()}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            options = {name: token[name] for name in _TOKEN_OPTIONS if name in token}
            tokenizer.add_tokens([tokenizers.AddedToken(token["content"], **options)])


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The first there is of chat_template.jinja (with those beside it, by name), tokenizer_config.json and
    chat_template.json (as processors have)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        named = {file.stem: schema.read_text(file) for file in folder.glob("additional_chat_templates/*.jinja")}
        return {**named, "default": schema.read_text(file)}
    legacy = _read(folder / "chat_template.json", schema.TokenizerConfig)
    return _named_templates(config.get("chat_template")) or _named_templates(legacy.get("chat_template"))


def _named_templates(entry: Any) -> dict[str, str]:
    """A template, a list of {name, template}, or a dict by name."""
    if isinstance(entry, list):
        entry = {item["name"]: item["template"] for item in entry}
    if isinstance(entry, str):
        entry = {"default": entry}
    return entry if isinstance(entry, dict) else {}


def _read(file: Path, kind: type[BaseModel]) -> dict[str, Any]:
    return schema.read_object(file, kind) if file.is_file() else {}
