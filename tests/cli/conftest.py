"""Models for the echo backend: a tokenizer and no weights, so that it takes no export and no engine to run them."""

from pathlib import Path

import pytest

from tests import tiny
from tests.fake_models import write_model


def write_echo_model(folder: Path, chat_template: str | None = None, **config: object) -> Path:
    write_model(folder, vocab_size=tiny.VOCABULARY, **config)
    tiny.save_tokenizer(folder, eos_token=tiny.SPECIAL_TOKENS[tiny.END_OF_TEXT], chat_template=chat_template)
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No chat template, and no end to its context."""
    return write_echo_model(tmp_path_factory.mktemp("models") / "plain", n_positions=None)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat template, and a context of 64 tokens."""
    return write_echo_model(tmp_path_factory.mktemp("models") / "chat", tiny.CHAT_TEMPLATE)
