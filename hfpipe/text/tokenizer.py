"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import tokenizers

from hfpipe import schema
from hfpipe.errors import UnsupportedModel
from hfpipe.text.bounds import bytes_per_token

if TYPE_CHECKING:
    from pydantic import BaseModel

_TOKEN_OPTIONS = ("special", "lstrip", "rstrip", "normalized", "single_word")
_SOURCES = ("tokenizer_config.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")


class Engine(Protocol):
    """What a library that tokenizes must offer; `decode` leaves out special tokens, and tidies no spaces."""

    def encode(self, text: str, add_special_tokens: bool) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def id_to_token(self, token_id: int) -> str | None: ...

    def added_tokens(self) -> Mapping[str, int]: ...

    def special_ids(self) -> Iterable[int]: ...

    def vocab_size(self) -> int: ...


class Tokenizer:
    """A model's tokenizer. `special_tokens` maps names such as bos_token to their text, for chat templates;
    `chat_templates` holds these by name, an only one as "default"."""

    def __init__(
        self,
        engine: Engine,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        self._engine = engine
        self.special_tokens: Mapping[str, str] = dict(special_tokens or {})
        self.chat_templates: Mapping[str, str] = dict(chat_templates or {})

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """All of `text` as ids. Half a surrogate pair, as JSON may hold one, is read as U+FFFD."""
        return tuple(self._engine.encode(_without_surrogates(text), add_special_tokens))

    def least_tokens(self, text: str) -> int:
        """`encode` gives no fewer; a small part of its work. 0 where nothing is certain."""
        longest = self._bytes_per_token
        # An added token may swallow the whitespace around it.
        return -(-len("".join(text.split()).encode(errors="replace")) // longest) if longest else 0

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens and without tidying of spaces."""
        return self._engine.decode(list(ids))

    def special_id(self, text: str) -> int | None:
        """The id of the special or added token that is exactly `text`."""
        return self._added_tokens.get(text)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._engine.special_ids())

    @cached_property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included. A model may have more ids than that: they have no text."""
        return self._engine.vocab_size()

    @cached_property
    def byte_values(self) -> Mapping[int, int]:
        """Ids that stand for one byte each, as in SentencePiece's byte fallback; empty where there are none."""
        ids = [self._engine.token_to_id(f"<0x{value:02X}>") for value in range(256)]
        letter = ids[ord("A")]
        # Where bytes are not spelled so, such a name can still be in a vocabulary, as text.
        if letter is None or self._engine.decode([letter]) != "A":
            return {}
        return {token_id: value for value, token_id in enumerate(ids) if token_id is not None}

    def has_text(self, token_id: int) -> bool:
        return token_id not in self.special_ids and self._engine.id_to_token(token_id) is not None

    @cached_property
    def _bytes_per_token(self) -> int | None:
        return bytes_per_token(self._engine.serialized()) if isinstance(self._engine, _Tokenizers) else None

    @cached_property
    def _added_tokens(self) -> Mapping[str, int]:
        return self._engine.added_tokens()


def require_tokenizer(folder: Path) -> None:
    """Raise UnsupportedModel where a model folder has nothing that a tokenizer could be made of."""
    if not any(any(folder.glob(pattern)) for pattern in ("tokenizer.json", *_SOURCES)):
        raise UnsupportedModel(
            f"There is no tokenizer in {folder}.", hint="Copy tokenizer.json of the original model into that folder."
        )


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model folder: its tokenizer.json, else whatever transformers can make of the folder.

    Raises UnsupportedModel where there is none, or where it cannot be read.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        return _from_file(file)
    require_tokenizer(folder)
    loaded = import_module("hfpipe.text.auto_tokenizer").load(folder, trust_remote_code=trust_remote_code)
    return from_transformers(loaded)


def from_transformers(tokenizer: Any) -> Tokenizer:
    """A Tokenizer over an existing transformers tokenizer, fast or slow, which it leaves as it is."""
    engine = _copied(tokenizer.backend_tokenizer) if tokenizer.is_fast else _Transformers(tokenizer)
    return Tokenizer(engine, _texts(tokenizer.special_tokens_map), _named_templates(tokenizer.chat_template))


def _copied(tokenizer: tokenizers.Tokenizer) -> Engine:
    """A tokenizer of our own: transformers switches the truncation of its own on and off as it is called."""
    return _Tokenizers(tokenizers.Tokenizer.from_str(tokenizer.to_str()))


class _Tokenizers:
    """The `tokenizers` library, with the truncation and padding that a file may hold switched off."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def added_tokens(self) -> Mapping[str, int]:
        return {token.content: token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items()}

    def special_ids(self) -> Iterable[int]:
        return [token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]

    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def serialized(self) -> str:
        text: str = self._tokenizer.to_str()
        return text


class _Transformers:
    """A transformers tokenizer in Python, without a `tokenizers` one inside."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, int] = tokenizer.get_vocab()
        self._tokens = {token_id: token for token, token_id in self._ids.items()}

    def encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        # verbose would warn of a prompt beyond model_max_length, which the generator judges.
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens, truncation=False, padding=False, verbose=False
        )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        known = [token_id for token_id in ids if token_id in self._tokens]
        text: str = self._tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._tokens.get(token_id)

    def added_tokens(self) -> Mapping[str, int]:
        special = zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True)
        return {**self._tokenizer.get_added_vocab(), **dict(special)}

    def special_ids(self) -> Iterable[int]:
        return list(self._tokenizer.all_special_ids)

    def vocab_size(self) -> int:
        return len(self._ids)


def _from_file(file: Path) -> Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    # The library raises a bare Exception for a file it cannot read.
    except Exception as error:
        raise UnsupportedModel(
            f"Cannot read {file}: {error}", hint="It may be half downloaded, or newer than the installed tokenizers."
        ) from error
    config = _read(file.with_name("tokenizer_config.json"), schema.TokenizerConfig)
    special_tokens = _special_tokens(file.parent, config)
    _add_tokens(tokenizer, file.parent, config)
    _mark_special(tokenizer, special_tokens.values())
    return Tokenizer(_Tokenizers(tokenizer), special_tokens, _chat_templates(file.parent, config))


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts; as in transformers, special_tokens_map.json counts in old folders alone."""
    if "added_tokens_decoder" in config:
        return _texts(config)
    return _texts(config) | _texts(_read(folder / "special_tokens_map.json", schema.AnyObject))


def _texts(entries: Mapping[str, Any]) -> dict[str, str]:
    """What is called ..._token and is a text, or an object that holds one; `add_bos_token` and the like are not."""
    contents = {name: entry.get("content") if isinstance(entry, dict) else entry for name, entry in entries.items()}
    return {name: text for name, text in contents.items() if name.endswith("_token") and isinstance(text, str)}


def _add_tokens(tokenizer: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Add what the configuration alone lists, in the order of its ids, as transformers does."""
    listed = config.get("added_tokens_decoder")
    if listed is None:
        added = _read(folder / "added_tokens.json", schema.AddedTokens)
        listed = {number: {"content": text, "normalized": False} for text, number in added.items()}
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            options = {name: token[name] for name in _TOKEN_OPTIONS if name in token}
            tokenizer.add_tokens([tokenizers.AddedToken(token["content"], **options)])


def _mark_special(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> None:
    """Make special what only the configuration says is special, as transformers does; never add to the vocabulary."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [text for text in texts if text not in added and tokenizer.token_to_id(text) is not None]
    tokenizer.add_special_tokens(missing)


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The first there is of chat_template.jinja, tokenizer_config.json and chat_template.json (as processors have)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return {"default": schema.read_text(file)}
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


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
