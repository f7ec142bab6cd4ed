"""`hfpipe bench` as a shell starts it, mostly on the echo backend."""

import csv
import io
import json
import os

import psutil
import pytest
import typer

from hfpipe.cli.bench import sizes
from hfpipe.cli.options import share
from tests.cli.shell import end_by, run_hfpipe, started, wait_for

QUICK = ["-p", "16", "-g", "4", "--batch", "1,2", "-r", "2"]


def bench(*args, **settings):
    return run_hfpipe("bench", *args, **settings)


@pytest.fixture(scope="module")
def measured(plain_model, tmp_path_factory):
    """A run of two equal configurations, and its files."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["-o", folder / "r.json", "--plot", folder / "r.svg"]
    ended = bench(plain_model, plain_model, "-b", "echo", *QUICK, *files, "--no-quality")
    assert ended.code == 0, ended.err.decode()
    return ended, folder


def test_a_table(measured):
    ended, _ = measured
    out = ended.out.decode()
    assert "plain echo" in out
    assert "plain echo (2)" in out
    for word in ("pp16", "batch2", "ttft", "rss", "Fewer than 3 rounds"):
        assert word in out, word
    assert max(len(line) for line in out.splitlines() if not line.startswith("  hfpipe ")) <= 80
    assert "Drawn:" in ended.err.decode()
    assert "- ttft_ms: from handing over 16 tokens to the first token" in ended.err.decode()


def test_everything_raw_in_a_file(measured):
    report = json.loads((measured[1] / "r.json").read_text())
    assert report["version"] == 1
    asked = {"prompt_tokens": 16, "new_tokens": 4, "batches": [1, 2], "repeats": 2, "prompts": None}
    assert asked.items() <= report["arguments"].items()
    assert report["arguments"]["backends"] == ["echo"]
    assert report["arguments"]["loading"]["exact"] is False
    for row in report["configurations"]:
        tasks = [(sample["task"], sample["round"]) for sample in row["samples"]]
        assert tasks == [(task, number) for number in (0, 1) for task in ("start", "single", "batch2")]
        assert len(row["samples"][1]["itl_ms"]) == 3
    assert report["host"]["versions"]["hfpipe"]
    assert report["interrupted"] is False


def test_pictures(measured):
    assert sorted(path.name for path in measured[1].iterdir()) == ["r-latency.svg", "r.json", "r.svg"]
    assert "plain echo (2)" in (measured[1] / "r-latency.svg").read_text()


def test_markdown_csv_and_json(plain_model, tmp_path):
    args = [plain_model, *SHORT]
    ended = bench(*args, "--markdown", "-o", tmp_path / "r.csv")
    assert (ended.code, ended.err) == (0, b"")
    assert "| echo |" in ended.out.decode()
    (row,) = csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text()))
    assert row["name"] == "echo"
    assert float(row["pp8"]) > 0
    ended = bench(*args, "--json", "-o", tmp_path / "r.md")
    assert json.loads(ended.out)["configurations"][0]["name"] == "echo"
    assert "| echo |" in (tmp_path / "r.md").read_text()
    assert bench(*args, "--csv").out.decode().startswith("name,model,backend,")


def test_against_an_earlier_run(measured, plain_model, tmp_path):
    report = json.loads((measured[1] / "r.json").read_text())
    args = [plain_model, "-b", "echo", *QUICK, "-r", "3", "--no-quality"]
    row, _ = report["configurations"]
    report["configurations"] = [row]
    row["samples"] = [
        {**sample, "round": 2 * again + sample["round"], "values": {**sample["values"], **faster}}
        for again in (0, 1)
        for sample in row["samples"]
        for faster in [{"pp16": 1e12} if "pp16" in sample["values"] else {}]
    ]
    baseline = tmp_path / "old.json"
    baseline.write_text(json.dumps(report))
    assert bench(*args, "--baseline", baseline).code == 0
    ended = bench(*args, "--baseline", baseline, "--fail-slower", "50%")
    assert ended.code == 1
    assert "slower" in ended.out.decode()
    other = bench(*args, "-p", "8", "--baseline", baseline)
    assert (other.code, other.out) == (2, b"")
    assert other.error == "The baseline was measured with different prompts or numbers of tokens."


def test_the_users_own_prompts(plain_model, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"question": "What is EEG?"}\n{"prompt": "Say more.", "max_tokens": 3}\n')
    report = tmp_path / "r.json"
    args = ["--prompts", prompts, "-g", "5", "--batch", "1,2", "-r", "1", "--no-quality", "-o", report]
    ended = bench(plain_model, "-b", "echo", *args)
    assert ended.code == 0, ended.err.decode()
    data = json.loads(report.read_text())
    assert data["arguments"]["prompt_tokens"] is None
    assert [one["id"] for one in data["arguments"]["prompts"]] == ["1", "2"]
    (row,) = data["configurations"]
    assert {"prefill_tps", "decode_tps"} <= set(row["samples"][1]["values"])
    assert len(row["samples"][1]["itl_ms"]) == 4 + 2


def unwrapped(out: bytes) -> str:
    """Long paths break the lines of a reason at other places."""
    return " ".join(out.decode().split())


def test_a_configuration_that_fails_is_a_row(plain_model):
    ended = bench(plain_model, "-b", "echo,torch", *QUICK, "-r", "1", "--no-quality")
    assert ended.code == 0, ended.err.decode()
    assert "torch failed: " in unwrapped(ended.out)


def test_auto_is_every_engine_that_fits(plain_model):
    args = [*QUICK, "-r", "1", "--no-quality", "--weight-format", "int8"]
    ended = bench(plain_model, *args, env={"HFPIPE_BACKEND": "auto"})
    assert ended.code == 1
    assert "torch failed: " in unwrapped(ended.out)
    assert "openvino" in ended.out.decode()


def test_where_all_fail(plain_model, tmp_path):
    ended = bench(plain_model, "-b", "torch", *QUICK, "-r", "1", "--no-quality", "-o", tmp_path / "r.json")
    assert ended.code == 1
    (row,) = json.loads((tmp_path / "r.json").read_text())["configurations"]
    assert row["error"]
    assert not row["samples"]


def test_quality_and_advice(tiny_llama, tmp_path):
    """A real engine, against its own source."""
    text = tmp_path / "text.txt"
    text.write_text("The signal is recorded with electrodes on the scalp. " * 30)
    ended = bench(tiny_llama, "-b", "torch", *QUICK, "--batch", "1", "-r", "1", "--text", text)
    assert ended.code == 0, ended.err.decode()
    out = ended.out.decode()
    assert "torch is the only configuration that loses at most 2%" in out
    assert "perplexity" in out
    assert f"hfpipe run {tiny_llama}" in out.replace("\\\n   ", "")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--batch", "0"], "batches (--batch) must be numbers from 1, not 0."),
        (["-r", "0"], "Invalid value for '--repeats' / '-r': 0 is not in the range x>=1."),
        (["--max-loss", "much"], "Invalid value for '--max-loss': 'much' is not a share, as in 2%."),
        (["--fail-slower", "10%"], "--fail-slower needs a --baseline to compare with."),
        (["--markdown", "--json"], "--json and --markdown cannot be combined: each is all of stdout."),
        (["--weight-format", "int8"], "echo cannot honour weight_formats (--weight-format); only openvino can."),
        (["--plot", "x.pdf"], "--plot: unsupported file type .pdf (use .png, .svg or .html)."),
        (["-o", "x.txt"], "--output: unsupported file type .txt (use .json, .md or .csv)."),
        (["-o", "/proc/x.json"], "Cannot write to /proc/x.json: No such file or directory."),
        (["-o", "no/such/x.json"], "Cannot write to no/such/x.json: No such file or directory."),
        (["-b", "auto,torch"], "--backend auto cannot be combined with other backends."),
        (
            ["-p", "8", "--prompts", "x.jsonl"],
            "prompt_tokens (--prompt-tokens) cannot be combined with prompts (--prompts).",
        ),
        (["--text", os.devnull], f"{os.devnull} is empty."),
        (["--text", "none.txt"], "Cannot read none.txt: No such file or directory."),
        (["--baseline", "none.json"], "Cannot read none.json: No such file or directory."),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(plain_model, tmp_path, args, error):
    ended = bench(plain_model, "-b", "echo", *args, cwd=tmp_path)
    assert (ended.code, ended.error, ended.out) == (2, error, b"")


@pytest.mark.parametrize(
    ("parse", "text", "found"),
    [
        (sizes, "1, 8,8", (1, 8)),
        (sizes, "1,,2", "'1,,2' must be numbers from 1, as in 1,8,32."),
        (share, "2%", 0.02),
        (share, "0.5", 0.5),
        *((share, text, f"{text!r} is not a share, as in 2%.") for text in ("2", "nan", "inf", "-1%", "")),
    ],
)
def test_what_an_option_takes(parse, text, found):
    if isinstance(found, str):
        with pytest.raises(typer.BadParameter) as caught:
            parse(text)
        assert caught.value.message == found
    else:
        assert parse(text) == found


def tasks_file(folder, *items):
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_tasks(plain_model, tmp_path):
    """Without quality, too; the echo backend gets right what asks for the prompt."""
    wrong = {"id": "wrong", "prompt": "hello", "answer": "goodbye", "kind": "greeting"}
    path = tasks_file(tmp_path, {"prompt": "hello", "answers": ["Hello!"]}, wrong)
    ended = bench(plain_model, plain_model, *SHORT, "--tasks", path, "-o", tmp_path / "r.json")
    assert ended.code == 0, ended.err.decode()
    out = ended.out.decode()
    assert "1 of 2" in out
    assert "50%" in out
    assert "difference: from plain echo, on the same items" in unwrapped(ended.out)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["arguments"]["tasks"] == {"file": str(path), "items": 2}
    first, other = (row["tasks"] for row in report["configurations"])
    assert (first["correct"], first["given"]["1"]) == ({"1": True, "wrong": False}, "hello")
    assert (other["against"], other["difference"]) == ("plain echo", 0)
    assert (first["kinds"], first["against"]) == ({"exact match": [1, 1], "greeting": [0, 1]}, None)


def test_tasks_that_are_wrong_are_said_before_anything_is_loaded(plain_model, tmp_path):
    path = tasks_file(tmp_path, {"prompt": "a", "answer": "b"}, {"prompt": "a"})
    ended = bench(tmp_path / "no model", "-b", "echo", "--tasks", path)
    said = f"Line 2 of {path} is not a task: expected choices with an answer, or else answer or answers."
    assert (ended.code, ended.error, ended.out) == (2, said, b"")
    ended = bench(plain_model, "-b", "echo", "--tasks", "builtin", cwd=tmp_path)
    said = "echo cannot honour multiple choice in tasks (--tasks): it gives no log-probabilities."
    assert (ended.code, ended.error, ended.out) == (2, said, b"")


def test_a_wrong_value_of_the_environment_is_blamed_on_it(plain_model):
    ended = bench(plain_model, "-b", "echo", env={"HFPIPE_MAX_LOSS": "much"})
    assert ended.code == 2
    assert "It comes from the environment: HFPIPE_MAX_LOSS=much" in ended.err.decode()


def test_a_killed_run_has_kept_its_rounds(plain_model, tmp_path):
    report = tmp_path / "r.json"
    args = [plain_model, "-b", "echo", *QUICK, "-r", "500", "--no-quality", "-o", report]
    with started("bench", *args) as process:
        wait_for(report.exists)
        process.kill()
    data = json.loads(report.read_text())
    assert data["interrupted"] is True
    assert {sample["task"] for sample in data["configurations"][0]["samples"]} == {"start", "single", "batch2"}


SHORT = ["-b", "echo", "-p", "8", "-g", "2", "--batch", "1", "-r", "1", "--no-quality", "-q"]


@pytest.mark.parametrize(
    ("stdout", "code", "said"),
    [("full", 1, b"Error: Cannot write to stdout: No space left on device."), ("gone", 0, b"")],
)
def test_what_is_measured_is_kept_where_stdout_takes_nothing(plain_model, tmp_path, stdout, code, said):
    """A full disk, and a reader that has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone, open("/dev/full", "wb") as full:
        streams = {"stdout": full if stdout == "full" else gone}
        with started("bench", plain_model, *SHORT, "-o", tmp_path / "r.json", **streams) as process:
            _, err = process.communicate()
    assert (process.returncode, err.strip()) == (code, said)
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"] is False


def test_one_file_that_cannot_be_written_does_not_cost_the_other(plain_model, tmp_path):
    (tmp_path / "r-latency.svg").mkdir()
    ended = bench(plain_model, *SHORT, "-o", tmp_path / "r.json", "--plot", tmp_path / "r.svg")
    assert ended.code == 1
    assert b"pp8" in ended.out
    assert ended.error.startswith(f"Cannot write to {tmp_path / 'r-latency.svg'}: ")
    assert (tmp_path / "r.json").exists()


def test_an_interrupted_run_shows_what_it_has(plain_model, tmp_path):
    report = tmp_path / "r.json"
    args = [plain_model, plain_model, "-b", "echo", *QUICK, "-r", "500", "--no-quality", "-o", report]
    children = set()

    def some_have_ended():
        children.update(child.pid for child in psutil.Process(process.pid).children())
        return len(children) > 4

    with started("bench", *args) as process:
        wait_for(some_have_ended)
        end_by(process)
        assert process.returncode == 130
        assert b"interrupted" in process.stdout.read()
    assert json.loads(report.read_text())["interrupted"] is True


def test_an_interrupt_while_quality_is_measured(tiny_gpt2, tmp_path):
    report, references = tmp_path / "r.json", tmp_path / "references"
    args = [tiny_gpt2, "-b", "torch", "-p", "8", "-g", "2", "--batch", "1", "-r", "1", "-o", report]
    with started("bench", *args, env={"HFPIPE_CACHE": str(tmp_path)}) as process:
        wait_for(lambda: list(references.glob("*")))
        end_by(process)
        assert process.returncode == 130
        shown = process.stdout.read().decode()
    assert "pp8" in shown
    assert "The run was interrupted" in shown
    assert json.loads(report.read_text())["interrupted"] is True
    assert list(references.glob("*")) == []


def test_an_interrupt_while_a_format_is_exported(tiny_gpt2, tmp_path):
    exports, args = tmp_path / "exports", [tiny_gpt2, "-b", "openvino", "--weight-format", "int8", *QUICK]
    with started("bench", *args, env={"HFPIPE_CACHE": str(tmp_path)}) as process:
        wait_for(lambda: list(exports.glob(".*.hfpipe-tmp")))
        end_by(process)
        assert (process.returncode, process.stdout.read()) == (130, b"")
    assert list(exports.glob("*")) == []


def test_a_page_has_the_advice(plain_model, tmp_path):
    ended = bench(plain_model, *SHORT, "--plot", tmp_path / "r.html")
    advice = ended.out.decode().splitlines()[-1]
    assert advice.endswith("no advice.")
    assert advice in (tmp_path / "r.html").read_text()


def test_a_reader_that_has_gone_hides_no_file_that_cannot_be_written(plain_model, tmp_path):
    (tmp_path / "r-latency.svg").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    with (
        os.fdopen(writer, "wb") as gone,
        started("bench", plain_model, *SHORT, "--plot", tmp_path / "r.svg", stdout=gone) as process,
    ):
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"Error: Cannot write to ")
