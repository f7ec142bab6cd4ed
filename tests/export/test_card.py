"""The model card: what it says, what it carries over, and that nothing in it breaks it or tells of the machine."""

import json

import pytest
import yaml
from markdown_it import MarkdownIt

from hfpipe import models
from hfpipe.errors import UsageError
from hfpipe.export import ExportOptions
from hfpipe.export import report as reports
from hfpipe.export.card import card, carried, without_paths
from hfpipe.export.plan import make_plan
from tests.fake_models import write_model
from tests.hub import LoopbackHub, settings

CHANGE = {"perplexity_change": 0.01, "perplexity_change_error": 0.002, "mean_kl": 0.0123, "same_top": 0.981}
REPORT = {
    "source": {
        "model": "org/name",
        "revision": "a" * 40,
        "sha256": "b" * 64,
        "license": "mit",
        "language": ["en", "no"],
    },
    "weight_format": "int4",
    "request": {"options": ["--weight-format", "int4", "--group-size", "64"], "in_8_bits": [], "calibration": None},
    "calibration": "built-in",
    "optimum_cli": ["--model", "/home/me/models/x", "--task", "text-generation-with-past", "OUTPUT"],
    "versions": {"hfpipe": "1.2", "nncf": "3.4"},
    "created": "2026-11-27T00:00:00+00:00",
    "files": {},
    "size": 123_456_789,
    "weights": {"int4": 0.75, "int8": 0.25},
    "quality": {**CHANGE, "kinds": {"code": CHANGE, "prose": CHANGE}},
    "answer": {"prompt": "a", "text": "```\n# b"},
    "warnings": [],
}


def changed(**source):
    return {**REPORT, "source": {"model": "x", "revision": None, "sha256": "b", **source}}


def parsed(text):
    """The front matter, and the blocks of the rest as a reader of Markdown sees them."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), MarkdownIt("commonmark").enable("table").parse(body)


def shape(text):
    return [(token.type, token.tag) for token in parsed(text)[1]]


def test_it_says_what_it_is_made_of_and_what_was_measured():
    text = card(REPORT, "name-ov-int4")
    front, _ = parsed(text)
    assert front == {
        "base_model": "org/name",
        "base_model_relation": "quantized",
        "license": "mit",
        "language": ["en", "no"],
        "library_name": "openvino",
        "pipeline_tag": "text-generation",
        "tags": ["openvino", "nncf", "4-bit"],
    }
    for words in (
        "# name-ov-int4\n",
        "[org/name](https://huggingface.co/org/name) for OpenVINO",
        "The license is the source's: mit.",
        "Size: 123 MB.",
        "75.0% int4, 25.0% int8",
        "| all | +1.0% (±0.2%) | 0.0123 | 98.1% |",
        "| code | +1.0% (±0.2%) | 0.0123 | 98.1% |",
        "`--weight-format int4 --group-size 64`",
        "hfpipe 1.2, nncf 3.4",
        'hfpipe run name-ov-int4 "',
        "LLMPipeline('name-ov-int4', \"CPU\")",
        "OVModelForCausalLM.from_pretrained('name-ov-int4')",
    ):
        assert words in text
    assert "/home" not in text


def test_a_published_one_names_the_repository():
    text = card(REPORT, "org/new", published=True)
    assert "# new\n" in text
    assert "hfpipe run org/new" in text
    assert "LLMPipeline(snapshot_download('org/new'), \"CPU\")" in text


def test_what_was_not_measured_is_said():
    report = {key: value for key, value in REPORT.items() if key not in ("quality", "weights", "warnings")}
    text = card({**report, "weight_format": "fp16"}, "x")
    assert "It was not compared with its source." in text
    assert parsed(text)[0]["tags"] == ["openvino"]
    assert "base_model_relation" not in parsed(text)[0]


def test_the_command_names_the_language_that_a_model_needs():
    assert "hfpipe run x --target-lang LANG " in card({**REPORT, "needs_target_lang": True}, "x")


def test_an_encoder_decoder_model_is_run_by_what_runs_it():
    text = card({**REPORT, "optimum_cli": ["--task", "text2text-generation-with-past"]}, "x")
    assert "OVModelForSeq2SeqLM" in text
    assert "LLMPipeline" not in text
    assert "pipeline_tag" not in parsed(text)[0]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/me/secret/my-model", "my-model"),
        ("~/secret/my-model/", "my-model"),
        ("../secret/my-model", "my-model"),
        ("/home/me/secret/my-model.gguf", "my-model.gguf"),
        ("smollm2", "smollm2"),
        ("pypi:tiny-model==1.0", "pypi:tiny-model==1.0"),
    ],
)
def test_a_local_model_is_named_by_its_last_part(model, name):
    warnings = ["Not compared with its source: '/home/me/secret/dir/file.bin' is gone."]
    text = card({**changed(model=model), "calibration": "/home/me/secret/text.txt", "warnings": warnings}, "x")
    assert name in text
    assert "secret" not in text
    assert "home" not in text
    assert "base_model" not in text
    assert "text.txt" in text


HOSTILE = [
    "a`b``c",
    "a|b",
    "# a",
    "```",
    "a\n\n# b",
    "<script>",
    "[x](http://y)",
    "* a",
    "---",
    "a\x1b[31mb",
    "a: b",
    "$x$",
    "&lt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_and_no_text_breaks_it(text):
    """The blocks stay the same, and there is no link and no HTML; the front matter stays what it was."""

    def made(word):
        source = {"model": word, "license": word, "license_name": word, "language": [word]}
        report = {**changed(**source), "warnings": [word], "calibration": word, "weights": {word: 1.0}}
        report["request"] = {**REPORT["request"], "options": ["--x", word], "in_8_bits": [word]}
        return card(report, word)

    assert shape(made(text)) == shape(made("word"))
    front, blocks = parsed(made(text))
    assert {child.type for token in blocks for child in token.children or ()} <= {"text", "code_inline", "softbreak"}
    assert front["language"] == [text]
    assert "\x1b" not in made(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/a b", "a b"),
        ("see /home/me/x.bin: gone", "see x.bin: gone"),
        ("--dataset=/home/me/x", "--dataset=x"),
        (r"C:\Users\me\x", "x"),
        ("org/name and 1/2, ./x", "org/name and 1/2, ./x"),
        ("https://a.b/c/d", "https://a.b/c/d"),
    ],
)
def test_paths_are_their_last_parts(text, expected):
    assert without_paths(text) == expected


# What is carried over


def source(tmp_path, readme=None, **config):
    folder = write_model(tmp_path / "model", **config)
    if readme is not None:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return models.resolve(str(folder))


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: mit\nlanguage:\n- en\n- no\ntags: [x]", {"license": "mit", "language": ["en", "no"]}),
        (
            "license: other\nlicense_name: l\nlicense_link: u",
            {"license": "other", "license_name": "l", "license_link": "u"},
        ),
        ("license: {a: b}\nlanguage: en", {"language": "en"}),
        ("license: 'a\\n\\n  b'", {"license": "a\\n\\n  b"}),
        ('license: "a\\nb"', {}),
        ("license: [", {}),
        ("[" * 5000, {}),
        ("- a", {}),
        ("license: !!python/object/apply:os.getcwd []", {}),
        ("license: " + "x" * 1000, {}),
    ],
)
def test_license_and_languages_of_the_sources_card(tmp_path, front, expected):
    assert carried(source(tmp_path, f"---\n{front}\n---\n# Title\n")) == expected


def test_without_a_card_the_license_of_the_configuration(tmp_path):
    assert carried(source(tmp_path, license="apache-2.0")) == {"license": "apache-2.0"}
    assert carried(source(tmp_path, "no front matter")) == {}
    assert carried(source(tmp_path, "---\nlicense: mit\n---\n", license="apache-2.0")) == {"license": "mit"}


def test_the_card_of_a_hub_model_comes_with_it(tmp_path):
    folder = write_model(tmp_path / "repo")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "notes.md").write_text("")
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    with LoopbackHub({"org/name": folder}) as hub, settings(**environment, HF_ENDPOINT=hub.url):
        assert carried(models.resolve("org/name")) == {"license": "mit"}
        assert "notes.md" not in hub.paths("GET")


# As a file of the export


def test_it_is_one_of_the_exports_files(tmp_path):
    model = source(tmp_path, "---\nlicense: mit\n---\n")
    plan = make_plan(model, tmp_path / "out", ExportOptions("int8"), verify=False)
    plan.output.mkdir()
    (plan.output / "openvino_model.bin").write_bytes(b"weights")
    described = reports.describe(plan, plan.output)
    report = reports.write(described | {"seconds": {}}, plan.output, "out")
    assert list(report["files"]) == ["README.md", "openvino_model.bin"]
    assert json.loads((plan.output / "hfpipe.json").read_text()) == report
    assert report["source"]["license"] == "mit"
    assert "license: mit\n" in (plan.output / "README.md").read_text()
    assert str(tmp_path) not in (plan.output / "README.md").read_text()
    reports.check_replaceable(plan.output)
    (plan.output / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"README.md that someone has edited"):
        reports.check_replaceable(plan.output)
