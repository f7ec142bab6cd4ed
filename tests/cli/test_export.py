"""`hfpipe export` as a shell starts it, on tiny models: checked first, whole or not at all, and it says so."""

import json
import math
import shutil
import signal
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from tests.cli.shell import HFPIPE, end_by, on_a_disk_of, run_hfpipe, started, wait_for
from tests.conftest import once
from tests.hub import LoopbackHub

STARTING = b"Starting optimum-cli"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def failure(code, *args, **settings):
    ended = run_hfpipe("export", *args, **settings)
    assert (ended.code, ended.out) == (code, b""), ended
    return ended


def interrupted(output, number, *args):
    """An export that gets the signal while its child is at work."""
    with started("export", *args, output) as process:
        wait_for(lambda: STARTING in process.stderr.readline())
        assert output.name not in names(output.parent)
        end_by(process, number)
        return process.returncode, process.stdout.read(), process.stderr.read()


@pytest.fixture(scope="session")
def int4(tiny_llama, tmp_path_factory):
    """On a terminal, as JSON, after one that was killed, with a place for temporary files that is too small. Its model
    names a class with which transformers builds and saves another tokenizer."""

    def export(kept):
        model, output, small = *places(kept), tmp_path_factory.mktemp("small")
        shutil.copytree(tiny_llama, model)
        output.parent.mkdir()
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["tokenizer_class"] = "LlamaTokenizerFast"
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        interrupted(output, signal.SIGKILL, model, "--weight-format", "int4")
        left = names(output.parent)
        try:
            command, settings = on_a_disk_of("size=16k", small), {"TMPDIR": str(small)}
        except pytest.skip.Exception:
            command, settings = HFPIPE, {}
        args = ("export", model, output, "--weight-format", "int4", "--json")
        ended = run_hfpipe(*args, env=settings, command=command, tty="stderr")
        assert ended.code == 0, ended
        kept.write_text(json.dumps({"left": left, "out": ended.out.decode(), "err": ended.err.decode()}))

    def places(kept):
        return kept.with_suffix("") / "model", kept.with_suffix("") / "exports" / "out"

    kept = once("int4.json", export)
    model, output = places(kept)
    return SimpleNamespace(output=output, report=read(output), model=model, **json.loads(kept.read_text()))


def read(output):
    return json.loads((output / "hfpipe.json").read_text(encoding="utf-8"))


# A whole export


def test_the_next_run_removes_what_a_killed_one_left(int4):
    assert int4.left == [".out.hfpipe-lock", ".out.hfpipe-tmp"]
    assert names(int4.output.parent) == ["out"]


def test_on_a_terminal_stages_come_and_go_and_json_is_the_report_in_one_line(int4):
    for stage in (STARTING.decode(), "Quantizing", "Comparing the export with its source"):
        assert stage in int4.err
    assert "\x1b[?25l" not in int4.err
    (line,) = int4.out.splitlines()
    assert json.loads(line) == {"folder": str(int4.output), "made": True, **int4.report}


def test_everything_that_is_needed_is_there_and_it_runs(int4):
    needed = ["config.json", "generation_config.json", "hfpipe.json", "tokenizer.json", "tokenizer_config.json"]
    for model in ("openvino_model", "openvino_tokenizer", "openvino_detokenizer"):
        needed += [f"{model}.xml", f"{model}.bin"]
    assert set(needed) <= set(names(int4.output))
    assert int4.report["tokenizer"] == {"missing": [], "differing": []}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (int4.output / name).read_bytes() == (int4.model / name).read_bytes()
    ended = run_hfpipe("run", int4.output, "What is EEG?", "-n", "8", "--temp", "0")
    assert (ended.code, ended.err) == (0, b"")
    assert len(ended.out) > 1


def test_the_report_says_what_it_is_and_how_good(int4):
    report = int4.report
    assert report["source"]["model"] == str(int4.model)
    assert report["versions"]["openvino"] == version("openvino")
    assert report["weight_format"] == "int4"
    assert report["request"]["options"][:2] == ["--weight-format", "int4"]
    for digest in (report["source"]["sha256"], *report["files"].values()):
        assert len(bytes.fromhex(digest)) == 32
    assert set(report["seconds"]) == {"export", "verification"}
    assert all(seconds > 0 for seconds in report["seconds"].values())
    assert report["peak_memory"] > 100_000_000
    assert report["answer"]["text"]
    quality = report["quality"]
    numbers = [value for value in quality.values() if isinstance(value, float)]
    numbers += [value for kind in quality["kinds"].values() for value in kind.values()]
    assert len(numbers) > 20
    assert all(map(math.isfinite, numbers))
    assert set(quality["kinds"]) >= {"code", "dialogue", "prose", "technical"}
    assert quality["mean_kl"] < 3
    assert quality["same_top"] > 0.05


def test_in_4_bits_it_is_smaller(int4):
    assert int4.report["weights"]["int4"] > 0.2
    assert math.isclose(sum(int4.report["weights"].values()), 1)
    assert int4.report["calibration"] == "built-in"
    sizes = [path.stat().st_size for path in (int4.output / "openvino_model.bin", int4.model / "model.safetensors")]
    assert sizes[0] < sizes[1] / 3


def test_the_same_request_does_nothing_and_says_what_is_there(int4):
    before = (int4.output / "hfpipe.json").stat()
    args = ("export", int4.model, int4.output, "--weight-format", "int4")
    ended = run_hfpipe(*args)
    assert (ended.code, ended.err) == (0, b"")
    assert "out, which exists already: nothing to do" in ended.out.decode()
    rows = [line.split("  ")[0] for line in ended.out.decode().splitlines()]
    assert rows[:6] == ["export", "size", "weights", "perplexity", "of it", "next token"]
    assert f'hfpipe run {int4.output} "..."' in ended.out.decode()
    ended = run_hfpipe(*args, "--json", env={"PYTHONIOENCODING": "ascii"})
    assert (ended.code, json.loads(ended.out)["made"]) == (0, False)
    assert (int4.output / "hfpipe.json").stat() == before


def test_from_the_hub_in_place_of_another(tiny_gpt2, tmp_path):
    """What follows -- reaches optimum-cli."""
    output = tmp_path / "gpt2-ov-fp16"
    output.mkdir()
    (output / "openvino_model.xml").write_text("old")
    made = {"format": 2, "source": {}, "request": {}, "files": {"openvino_model.xml": ""}}
    (output / "hfpipe.json").write_text(json.dumps(made))
    args = ("--revision", "main", "--weight-format", "fp16", "--no-verify", "--force")
    with LoopbackHub({"gpt2": tiny_gpt2}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": None, "HF_HOME": str(tmp_path / "hf")}
        ended = run_hfpipe("export", "gpt2", *args, "--", "--disable-convert-tokenizer", env=env, cwd=tmp_path)
        commit = hub.commit("gpt2")
    assert (ended.code, ended.out[:6]) == (0, b"export")
    stages = [line.split(b" s  ")[1] for line in ended.err.splitlines() if b" s  " in line]
    assert stages[0] == STARTING
    assert names(tmp_path) == ["gpt2-ov-fp16", "hf"]
    assert (output / "openvino_model.xml").read_text() != "old"
    assert not [name for name in names(output) if "openvino_tokenizer" in name]
    report = read(output)
    assert report["source"]["model"] == "gpt2"
    assert report["source"]["revision"] == commit
    assert "quality" not in report


# To the Hub

TOKEN = "hf_" + "s3cret" * 5


@pytest.fixture
def hub(tmp_path):
    """For uploads; `env` has what a command needs to find it."""
    with LoopbackHub({}, uploads=tmp_path / "uploads") as hub:
        hub.env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": None, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        hub.env |= {"HF_HUB_DISABLE_XET": "1", "HFPIPE_DEBUG": "1"}
        yield hub


def test_an_export_that_exists_is_pushed_and_then_runs_from_there(int4, hub, tmp_path):
    args = ("export", int4.model, int4.output, "--weight-format", "int4", "--push", "org/new")
    ended = run_hfpipe(*args, env=hub.env)
    url, commit = f"{hub.url}/org/new", hub.commit("org/new")
    assert ended.code == 0, ended
    assert f"{url}, commit {commit}; private, {url}/settings makes it public" in ended.out.decode()
    again = run_hfpipe(*args, "--json", env=hub.env)
    assert json.loads(again.out)["pushed"] == {"repo": "org/new", "url": url, "commit": commit, "private": True}
    assert TOKEN not in str((ended, again, read(int4.output)))
    ended = run_hfpipe("run", "org/new", "What is EEG?", "-n", "8", "--temp", "0", env=hub.env, cwd=tmp_path)
    here = run_hfpipe("run", int4.output, "What is EEG?", "-n", "8", "--temp", "0")
    assert (ended.code, ended.out) == (0, here.out)


def test_a_plan_says_where_it_would_be_pushed_and_pushes_nothing(tiny_llama, hub, tmp_path):
    args = ("export", tiny_llama, tmp_path / "out", "--dry-run", "--push", "org/new")
    rows = run_hfpipe(*args, env=hub.env).out.decode()
    assert f"to {hub.url}/org/new, which will be created, private\n" in rows
    planned = json.loads(run_hfpipe(*args, "--json", env=hub.env).out)
    assert planned["push"] == {"repo": "org/new", "url": f"{hub.url}/org/new", "exists": False, "private": True}
    assert hub.paths("POST") == []


def test_a_push_that_fails_shows_no_token_and_leaves_the_export(int4, hub):
    """Even where tracebacks are asked for, and the server repeats what it was sent."""
    hub.refuse = {"commit": (403, f"No: Bearer {TOKEN}")}
    args = (int4.model, int4.output, "--weight-format", "int4", "--push", "org/new")
    ended = failure(1, *args, env=hub.env)
    assert b"Traceback" in ended.err
    assert b"The token may not write to org/new (status 403)." in ended.err
    assert TOKEN.encode() not in ended.err
    ended = failure(1, *args, "--verbose", env={**hub.env, "HFPIPE_DEBUG": None, "HF_DEBUG": "1"})
    assert TOKEN.encode() not in ended.err
    assert read(int4.output) == int4.report


def test_a_push_needs_a_token_and_a_name(tiny_llama, hub, tmp_path):
    settings = {**hub.env, "HFPIPE_DEBUG": None}
    args = (tiny_llama, tmp_path / "out", "--push")
    ended = failure(1, *args, "org/new", env={**settings, "HF_TOKEN": None})
    assert ended.error == "org/new cannot be pushed without a token of the Hub."
    assert failure(2, *args, "new", env=settings).error == "--push takes ORG/NAME, not 'new'."
    assert hub.requests == []


# A plan


def test_a_plan_writes_nothing(tiny_llama, tmp_path):
    args = ("--weight-format", "int4", "--ratio", "0.8", "--dry-run")
    ended = run_hfpipe("export", tiny_llama, *args, cwd=tmp_path, tty="stderr")
    assert (ended.code, names(tmp_path)) == (0, [])
    rows = dict(line.split("  ", 1) for line in ended.out.decode().splitlines())
    assert rows["output"].strip() == str(tmp_path / "tiny-llama-ov-int4")
    assert "--ratio 0.8" in rows["command"]


# What is refused before a weight is read


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--weight-format", "int4", "--group-size", "128"], "Group size 128 does not divide 96, the width"),
        (["--weight-format", "int4", "--group-size", "big"], "'big' must be a number or auto."),
        (["--", "--model", "x"], "`--model` is set by hfpipe and cannot be given after --."),
    ],
)
def test_wrong_usage(tiny_llama, tmp_path, args, error):
    assert error in failure(2, tiny_llama, tmp_path / "out", *args).error
    assert names(tmp_path) == []


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["export", "plan"])
def test_an_output_that_may_not_be_written(tiny_llama, tmp_path, more):
    ended = run_hfpipe("export", tiny_llama, tmp_path / "out", *more, command=on_a_disk_of("ro", tmp_path))
    assert (ended.code, ended.out) == (1, b"")
    assert ended.error == f"Cannot write to {tmp_path}: Read-only file system."
    assert ended.hint == "Choose another output folder."


def test_names_that_can_never_be_written(tiny_llama, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output, words in (("loop", "loop: Too many levels of symbolic links."), ("x" * 300, ": File name too long.")):
        ended = failure(1, tiny_llama, tmp_path / output)
        assert ended.error.endswith(words)
        assert ended.hint == "Choose another output folder."


# What goes wrong later


def test_an_interrupted_export_leaves_nothing(tiny_llama, tmp_path):
    assert interrupted(tmp_path / "out", signal.SIGINT, tiny_llama, "--weight-format", "int8") == (130, b"", b"")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("weight_format", "size"), [("fp32", "300k"), ("int8", "700k")], ids=["as it is converted", "as it is quantized"]
)
def test_a_full_disk_is_one_line_and_nothing_is_left(tiny_llama, tmp_path, weight_format, size):
    args = ("--weight-format", weight_format, "--force", "-q")
    command = on_a_disk_of(f"size={size}", tmp_path)
    ended = run_hfpipe("export", tiny_llama, tmp_path / "deep" / "out", *args, command=command)
    assert (ended.code, ended.out) == (1, b"")
    assert STARTING not in ended.err
    assert ended.error == f"The disk of {tmp_path / 'deep'} is full."
    assert ended.hint == "Free some space, or choose another output folder, and run it again."


# A budget


def test_a_budget_is_kept_and_its_curve_shown_and_drawn(tiny_llama, tmp_path):
    """Layers are in 4 bits as far as it allows; the same command finds the export finished."""
    output, picture = tmp_path / "out", tmp_path / "curve.svg"
    args = ("export", tiny_llama, output, "--max-loss", "50%", "--group-size", "16", "--plot", picture)
    ended = run_hfpipe(*args, timeout=300)
    assert ended.code == 0, ended
    report = read(output)
    budget = report["budget"]
    kept = [one for one in budget["tried"] if one["fits"]]
    assert sum(path.stat().st_size for path in output.iterdir()) == report["size"]
    assert report["size"] <= min(one["size"] for one in kept) <= report["size"] + 25_000
    assert math.expm1(report["quality"]["mean_kl"]) <= 0.5
    assert report["weights"]["int4"] > 0
    sizes = [one["size"] for one in budget["curve"]]
    assert sizes == sorted(sizes, reverse=True)
    assert b"a loss (exp(KL) - 1) of at most 50.0%" in ended.out
    assert b"% lost" in picture.read_bytes()
    picture.unlink()
    again = run_hfpipe(*args)
    assert b"which exists already" in again.out
    assert picture.is_file()
    assert b"was made with other options" in failure(1, *args[1:3], "--max-loss", "40%", "--group-size", "16").err


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("--max-loss", "2%", "--no-verify"), b"--max-loss and --max-size are kept by measuring"),
        (("--plot", "x.svg"), b"--plot needs --max-loss or --max-size."),
        (("--max-size", "small"), b"'small' is not a size, as in 95MB."),
        (("--max-size", "1kB"), b"With all layers in 4 bits"),
        (("--max-loss", "200%"), b"--max-loss must be above 0 and at most 1 (100%)"),
        (("--max-loss", "0"), b"--max-loss must be above 0"),
        (("--max-loss", "2%", "--weight-format", "int8"), b"--max-loss needs --weight-format int4."),
    ],
)
def test_what_no_budget_can_be(tiny_llama, tmp_path, args, error):
    assert error in failure(2, tiny_llama, tmp_path / "out", *args).err
