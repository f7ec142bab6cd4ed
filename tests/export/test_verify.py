"""What a verification sees: a tokenizer that is not the source's."""

import json
import shutil

import pytest

from hfpipe.backends.openvino.conversion import copy_tokenizer
from hfpipe.errors import ConversionError
from hfpipe.export.verify import main, tokenizer_report
from hfpipe.types import Silent


@pytest.fixture
def export(tiny_llama_ov, tmp_path):
    return shutil.copytree(tiny_llama_ov, tmp_path / "export")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_tokenizer_is_the_sources_byte_for_byte(tiny_llama, export, tmp_path):
    """Not what transformers has made of the class that its configuration names, where the source has one."""
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    edit(source / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    edit(export / "tokenizer.json", pre_tokenizer=None)
    (export / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"The export's tokenizer gives other ids than its source's \(\w+ text\)"):
        tokenizer_report(export, source)
    copy_tokenizer(source, export)
    for name in ("tokenizer.json", "tokenizer_config.json", "additional_chat_templates/rag.jinja"):
        assert (export / name).read_bytes() == (source / name).read_bytes()
    assert not (export / "special_tokens_map.json").exists()
    assert set(tokenizer_report(export, source)) <= {"missing", "differing"}
    made = (export / "tokenizer.json").read_bytes()
    (source / "tokenizer.json").unlink()
    copy_tokenizer(source, export)
    assert (export / "tokenizer.json").read_bytes() == made


FILES = [
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "source.spm", "target.spm"),
    *("added_tokens.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "qwen.tiktoken"),
    *("tekken.json", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates/rag.jinja", "additional_chat_templates/tool_use.jinja"),
]


@pytest.mark.parametrize("has_tokenizer", [True, False], ids=["tokenizer.json", "none"])
def test_every_file_of_a_tokenizer_is_the_sources_and_nothing_else_is_copied(tmp_path, has_tokenizer):
    """What transformers saved beside them is gone where the source has a tokenizer.json, which needs none of it."""
    source, export = tmp_path / "source", tmp_path / "export"
    files = FILES if has_tokenizer else FILES[1:]
    for folder in (source, export):
        (folder / "additional_chat_templates").mkdir(parents=True)
    for number, name in enumerate(files):
        (source / name).write_bytes(bytes([number, 13, 10, 255]))
        (export / name).write_text("saved anew")
    (export / "additional_chat_templates" / "default.jinja").write_text("saved")
    for name in ("README.md", "LICENSE", "notes.txt", "model.safetensors", "config.json"):
        (source / name).write_text("not of the tokenizer")
    copy_tokenizer(source, export)
    for name in files:
        assert (export / name).read_bytes() == (source / name).read_bytes(), name
    saved = {path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()}
    assert saved == {*files, *([] if has_tokenizer else ["additional_chat_templates/default.jinja"])}


@pytest.mark.parametrize(("kind", "needs"), [("m2m_100", True), ("t5", False)])
def test_whether_a_user_must_choose_a_language(tiny_seq2seq, tiny_seq2seq_ov, tmp_path, kind, needs):
    arguments = {"folder": tiny_seq2seq_ov(kind), "source_folder": tiny_seq2seq(kind), "temporary": tmp_path}
    report = main({**arguments, "reference_folder": None, "trust_remote_code": False}, Silent())
    assert report["needs_target_lang"] is needs
