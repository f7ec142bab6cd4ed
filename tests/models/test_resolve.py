"""What a reference means, and what is said of one that means nothing."""

import pytest
from huggingface_hub import constants

from hfpipe.errors import ModelError, ModelNotFound, UnsupportedModel, UsageError
from hfpipe.models import known_names, resolve
from tests.fake_models import write_gguf, write_model


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """A working directory, a Hub cache and a cache with nothing in them."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def hub_cache(tmp_path):
    for name in ("models--gpt2", "models--org--name", "datasets--org--data", ".locks"):
        (tmp_path / "hf" / "hub" / name).mkdir(parents=True)


def test_a_folder_by_every_spelling(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "cwd" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    for reference in ("model", "./model", "model/", "../cwd/model", str(folder), "~/cwd/model"):
        source = resolve(reference)
        assert source.reference == reference
        assert source.folder.samefile(folder)
        assert source.folder.is_absolute()


def test_a_folder_wins_over_the_hub_and_over_built_in_names(tmp_path):
    for name in ("gpt2", "smollm2", "org/name"):
        folder = write_model(tmp_path / "cwd" / name)
        assert resolve(name).folder == folder


def test_a_folder_in_the_way_of_a_hub_model_is_said_to_be(tmp_path):
    (tmp_path / "cwd" / "gpt2").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json") as caught:
        resolve("gpt2")
    assert "The local folder ./gpt2 hides the Hub model gpt2." in caught.value.hint
    for name, hint in (("adapter_config.json", "Merge the adapter"), ("config.json", "half-downloaded")):
        (tmp_path / "cwd" / name).mkdir()
        (tmp_path / "cwd" / name / name).write_text("{}")
        with pytest.raises(ModelError) as caught:
            resolve(name)
        assert hint in caught.value.hint
        assert "hides" not in caught.value.hint


@pytest.mark.parametrize("reference", ["", " ", "\n"])
def test_nothing(reference):
    with pytest.raises(ModelNotFound, match="empty") as caught:
        resolve(reference)
    assert "smollm2" in caught.value.hint


@pytest.mark.parametrize(
    "reference", ["./none", "../none", "/none", "~/none", "~nobody/x", "./" + "x" * 5000, "none.gguf", "a/none.gguf"]
)
def test_a_path_to_nothing(reference):
    with pytest.raises(ModelNotFound, match="There is no folder or file"):
        resolve(reference)


ODD = ["a b", "org/name/extra", "--index-url", "a//b", "a/", "a..b", "a--b", "gpt2.", "x" * 97, "ä", "a\0b", "a\nb"]
ODD += ["gpt2.git"]


@pytest.mark.parametrize("reference", ODD)
def test_odd_names_are_refused_before_anything_is_asked(reference):
    with pytest.raises(ModelNotFound) as caught:
        resolve(reference)
    assert "neither a folder nor the name of a model" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_revision_in_the_name():
    with pytest.raises(ModelNotFound) as caught:
        resolve("gpt2@main")
    assert caught.value.hint == "Write gpt2, and --revision main"


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "model.bin"])
def test_a_file_that_is_no_model(tmp_path, name):
    (tmp_path / "cwd" / name).touch()
    with pytest.raises(ModelError, match=r"only \.gguf files are models"):
        resolve(f"./{name}")


@pytest.mark.parametrize("reference", ["smollm2", "pypi:x", "./model", "model", "x.gguf"])
def test_a_revision_goes_with_a_hub_id_alone(tmp_path, reference):
    write_model(tmp_path / "cwd" / "model")
    (tmp_path / "cwd" / "x.gguf").touch()
    with pytest.raises(UsageError, match="has no revisions"):
        resolve(reference, revision="main")


def test_known_names_are_listed_not_loaded(hub_cache, monkeypatch):
    assert known_names() == ["smollm2", "gpt2", "org/name"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    assert known_names() == ["smollm2"]


def test_the_nearest_known_name_is_the_hint(hub_cache):
    with pytest.raises(ModelNotFound) as caught:
        resolve("./gpt2")
    assert caught.value.hint == "Did you mean 'gpt2'?"


def test_another_content_is_another_model(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", weights=False, tokenizer_ggml_pre="one")
    with pytest.raises(UnsupportedModel, match="'one'"):
        resolve(str(file))
    write_gguf(file, weights=False, tokenizer_ggml_pre="another")
    with pytest.raises(UnsupportedModel, match="'another'"):
        resolve(str(file))


def test_a_local_folder_needs_nothing_heavy(tmp_path, resolve_in_child):
    assert resolve_in_child(str(write_model(tmp_path / "model")))["heavy"] == []
