"""What a model is asked to do: its task, what the model has for that, and the languages of a translation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from hfpipe.errors import UnsupportedOption, UsageError, nearest
from hfpipe.text.tokenizer import Tokenizer
from hfpipe.types import DIRECTION, TASKS, LoadOptions, ModelSource, Task

_GENERATION, _TEXT2TEXT, _SUMMARIZATION, _TRANSLATION = TASKS
# Kinds of models that were made for one task.
_MADE_FOR = {
    **dict.fromkeys(("fsmt", "m2m_100", "marian", "nllb-moe"), _TRANSLATION),
    **dict.fromkeys(("bigbird_pegasus", "pegasus", "pegasus_x"), _SUMMARIZATION),
}
_SHOWN = 10
# Tokens of languages, as M2M-100, mBART and NLLB have them.
_LANGUAGE = re.compile(r"__[a-z]{2,3}__|[a-z]{2,3}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}")


def for_task(source: ModelSource, options: LoadOptions) -> ModelSource:
    """`source` with its task, that of the options or else of its config.json, and the settings that it has for it.

    Raises UsageError for a task or a language that the model does not have.
    """
    name, source_lang, target_lang = _asked(options)
    specific = source.config.get("task_specific_params") or {}
    directions = [match for match in map(DIRECTION.fullmatch, specific) if match]
    if not source.is_encoder_decoder:
        known = [_GENERATION]
    elif only := _MADE_FOR.get(source.config.get("model_type", "")):
        known = [only, _TEXT2TEXT]
    else:
        has = {_SUMMARIZATION: any(one.startswith(_SUMMARIZATION) for one in specific), _TRANSLATION: bool(directions)}
        known = [_TEXT2TEXT, *(task for task, found in has.items() if found or not specific)]
        if name is None and (target_lang or len(specific) == 1):
            name = _TRANSLATION if target_lang else known[-1]
    if name is not None and name not in known:
        raise UnsupportedOption(f"{source.reference} cannot do --task {name}.", hint=f"It can do {_listed(known)}.")
    name = name or known[0]
    preferred = dict(source.generation_config)
    if name == _TRANSLATION and directions:
        key, pairs = f"translation_{source_lang}_to_{target_lang}", [" to ".join(one.groups()) for one in directions]
        if key not in specific:
            hint = f"Choose one with --source-lang and --target-lang: {', '.join(pairs)}."
            if not (source_lang and target_lang):
                raise UsageError(f"{source.reference} needs both languages of a translation.", hint=hint)
            raise UsageError(f"{source.reference} does not translate from {source_lang} to {target_lang}.", hint=hint)
        preferred, source_lang, target_lang = preferred | specific[key], None, None
    elif name == _SUMMARIZATION:
        preferred |= specific.get(_SUMMARIZATION, {})
    prefix = str(preferred.pop("prefix", None) or "")
    if source.is_encoder_decoder and preferred.get("max_length") and not preferred.get("max_new_tokens"):
        # transformers counts the decoder's start, too.
        preferred["max_new_tokens"] = max(1, int(preferred["max_length"]) - 1)
    return replace(source, generation_config=preferred, task=Task(name, prefix, source_lang, target_lang))


def _asked(options: LoadOptions) -> tuple[str | None, str | None, str | None]:
    """Task and languages; translation_en_to_de is all three."""
    languages = (options.source_lang, options.target_lang)
    if options.task is None or not (match := DIRECTION.fullmatch(options.task)):
        return options.task, *languages
    if any(given not in (None, named) for given, named in zip(languages, match.groups(), strict=True)):
        raise UsageError(f"--task {options.task} and the languages given beside it contradict each other.")
    return _TRANSLATION, match[1], match[2]


class PromptEncoder:
    """Prompts as the ids that a model takes, and in `decoder_ids` what the answers of an encoder-decoder model begin
    with. Raises UsageError for languages that the model does not have."""

    def __init__(self, tokenizer: Tokenizer, source: ModelSource) -> None:
        self.tokenizer, task = tokenizer, source.task
        self._languages = {text: number for text, number in tokenizer.added_tokens.items() if _LANGUAGE.fullmatch(text)}
        self.prefix, self._from = task.prefix, None
        self.decoder_ids = source.decoder_start
        if task.source_lang:
            self._from = self._language(task.source_lang, source)
        if task.target_lang and tokenizer.engine.token_to_id(f">>{task.target_lang}<<") is not None:
            # Marian's models of several languages.
            self.prefix = f">>{task.target_lang}<< "
        elif task.target_lang:
            target, (start, *_) = self._language(task.target_lang, source), self.decoder_ids
            self.decoder_ids = (target,) if start in self._languages.values() else (start, target)

    @property
    def lacks_language(self) -> bool:
        """Whether the model needs a language to write in, and none is chosen."""
        languages = self._languages
        return bool(self.decoder_ids) and len(languages) > 1 and not {*self.decoder_ids} & {*languages.values()}

    def check_language(self, reference: str) -> None:
        """Raise UsageError where the model called `reference` lacks a language."""
        if self.lacks_language:
            raise UsageError(
                f"{reference} writes {len(self._languages)} languages, and none is chosen.",
                hint=f"Name one with --target-lang: {_listed(self._languages)}.",
            )

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        ids = self.tokenizer.encode(self.prefix + text, add_special_tokens)
        if self._from is None:
            return ids
        # The tokenizer adds the language that it was saved with.
        languages = {*self._languages.values()}
        return tuple(self._from if token in languages else token for token in ids)

    def _language(self, name: str, source: ModelSource) -> int:
        if not self.decoder_ids or not self._languages:
            raise UsageError(
                f"{source.reference} has no language {name!r}: it does not choose among languages.",
                hint="Leave --source-lang and --target-lang out.",
            )
        known: Mapping[str, int] = self._languages
        found = [text for text in known if text in (name, f"__{name}__") or text.startswith(f"{name}_")]
        if len(found) != 1:
            hint = nearest(name, known) or f"It has {_listed(found or known)}."
            raise UsageError(f"{source.reference} has no language {name!r}.", hint=hint)
        return known[found[0]]


def _listed(names: Mapping[str, int] | list[str]) -> str:
    some = sorted(names) if isinstance(names, Mapping) else names
    return ", ".join(some[:_SHOWN]) + (f" and {len(some) - _SHOWN} others" if len(some) > _SHOWN else "")
