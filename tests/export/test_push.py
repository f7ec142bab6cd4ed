"""`--push`: one commit of the finished export, what is said where the Hub refuses it, and a token that nobody sees."""

import json
import socket
import traceback
from pathlib import Path

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

import hfpipe
from hfpipe import store
from hfpipe.errors import AccessDenied, DownloadError, HFPipeError, UsageError
from hfpipe.export import exporter
from hfpipe.export import report as reports
from hfpipe.models import upload
from tests.fake_models import write_model
from tests.hub import LoopbackHub, settings
from tests.recorder import Recorder

TOKEN = "hf_" + "s3cret" * 5
FINISHED = "The export is finished: the same command, without --force, only uploads it."


@pytest.fixture
def model(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HFPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
    return write_model(tmp_path / "secret" / "model")


@pytest.fixture
def converted(monkeypatch):
    """How often a model was converted."""
    commands = []

    def convert(source, command, **_):
        commands.append(command)
        (Path(command[-1]) / "openvino_model.xml").write_text("xml")
        (Path(command[-1]) / "openvino_model.bin").write_bytes(b"weights" * 1000)
        (Path(command[-1]) / "templates").mkdir()
        (Path(command[-1]) / "templates" / "a.jinja").write_text("template")

    monkeypatch.setattr(exporter, "run_export", convert)
    # What waits between attempts.
    monkeypatch.setattr("time.sleep", lambda _: None)
    return commands


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub({}, uploads=tmp_path / "uploads") as running:
        environment = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": running.url, "HF_TOKEN": TOKEN}
        with settings(**environment, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1"):
            yield running


def push(model, repo="org/new", **options):
    output = model.parent / "out"
    return hfpipe.export(model, output, weight_format="int8", verify=False, push=repo, **options)


def refusal(model, kind=HFPipeError, **options):
    """The error, of which nothing shows the token."""
    with pytest.raises(kind) as caught:
        push(model, **options)
    shown = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in shown + str(caught.value) + repr(caught.value)
    assert "\n" not in caught.value.message
    return caught.value


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_repository_is_private_and_has_the_files_of_the_export(model, converted, hub):
    recorder = Recorder()
    done = push(model, reporter=recorder)
    url = f"{hub.url}/org/new"
    assert done.pushed == {"repo": "org/new", "url": url, "commit": hub.commit("org/new"), "private": True}
    assert hub.private == {"org/new"}
    assert recorder.stages[-2:] == ["Uploading to org/new", None]
    ours, theirs = contents(done.folder), contents(hub.repos["org/new"])
    assert sorted(ours) == sorted(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == {"README.md", "hfpipe.json"}
    assert [path for path in hub.paths("POST") if "/commit/" in path] == ["/api/models/org/new/commit/main"]
    assert "pushed" not in json.loads(ours["hfpipe.json"])


def test_what_is_pushed_names_the_repository_and_nothing_of_this_machine(model, converted, hub):
    done = push(model)
    theirs = contents(hub.repos["org/new"])
    assert b"hfpipe run org/new" in theirs["README.md"]
    for name, content in theirs.items():
        assert TOKEN.encode() not in content, name
        assert b"secret" not in content, name
    report = reports.read(hub.repos["org/new"])
    assert report["source"]["model"] == "model"
    assert report["files"] == {**done.data["files"], "README.md": store.digest(hub.repos["org/new"] / "README.md")}
    assert str(model) in (done.folder / "hfpipe.json").read_text(), "on this machine it is what it was"


def test_the_same_again_only_uploads_and_sends_no_weights_twice(model, converted, hub):
    hub.refuse = {"commit": (500, "Oops")}
    assert refusal(model, DownloadError).hint.endswith(FINISHED)
    assert contents(hub.repos["org/new"]) == {}, "a part of an export is nothing"
    hub.refuse = {}
    hub.requests.clear()
    done = push(model)
    assert (len(converted), done.made) == (1, False)
    assert done.pushed["commit"] == hub.commit("org/new")
    assert hub.paths("PUT") == []


def test_another_export_replaces_the_earlier_one(model, converted, hub):
    push(model)
    repo = hub.repos["org/new"]
    (repo / "openvino_encoder_model.xml").write_text("of an earlier one")
    (repo / "notes.txt").write_text("of its owner")
    hub.private.clear()
    done = push(model)
    assert done.pushed["private"] is False
    assert not (repo / "openvino_encoder_model.xml").exists()
    assert (repo / "notes.txt").exists()


def test_other_files_in_the_folder_are_not_sent_and_an_edited_card_is(model, converted, hub):
    folder = push(model).folder
    (folder / ".env").write_text("PASSWORD=1")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine\n")
    push(model)
    assert ".env" not in contents(hub.repos["org/new"])
    assert (hub.repos["org/new"] / "README.md").read_text().endswith("Mine\n")


def test_an_export_from_before_the_card_gets_one(model, converted, hub):
    """As it is pushed: the export on disk is left as it is."""
    folder = push(model).folder
    report = reports.read(folder)
    del report["files"]["README.md"]
    (folder / "README.md").unlink()
    (folder / "hfpipe.json").write_text(json.dumps(report))
    push(model)
    assert "hfpipe run org/new" in (hub.repos["org/new"] / "README.md").read_text()
    assert not (folder / "README.md").exists()
    (folder / "README.md").write_text("Mine")
    push(model)
    assert (hub.repos["org/new"] / "README.md").read_text() == "Mine"


def test_a_repository_with_something_else_stays_as_it_is(model, converted, hub):
    """Before any work: it may be the very model that is exported."""
    other = write_model(model.parent / "other")
    hub.repos["org/other"] = other
    before = contents(other)
    error = refusal(model, UsageError, repo="org/other")
    assert error.message.startswith("org/other on the Hub holds config.json, which is of no export of hfpipe")
    assert (contents(other), converted, hub.paths("POST")) == (before, [], [])


@pytest.mark.parametrize("repo", ["", "name", "org/", "/name", "a/b/c", "org/name.git", "org/a--b", "./out", "org/n m"])
def test_a_name_that_is_none(model, converted, hub, repo):
    error = refusal(model, UsageError, repo=repo)
    assert error.message == f"--push takes ORG/NAME, not {repo!r}."
    assert (converted, hub.requests) == ([], [])


@pytest.mark.parametrize(
    ("environment", "kind", "message", "hint"),
    [
        ({"HF_TOKEN": ""}, AccessDenied, "org/new cannot be pushed without a token", "hf auth login"),
        ({"HF_HUB_OFFLINE": "1"}, DownloadError, "HF_HUB_OFFLINE forbids it", "Unset HF_HUB_OFFLINE"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, DownloadError, "http://127.0.0.1:9 cannot be reached", "the network"),
        ({"HF_TOKEN": "hf_\u00f6"}, DownloadError, "has characters that no token has", "hf auth login"),
    ],
)
def test_what_is_known_before_the_work(model, converted, hub, environment, kind, message, hint):
    with settings(**environment):
        error = refusal(model, kind)
    assert message in error.message
    assert hint in error.hint
    assert converted == []


@pytest.mark.parametrize("refuse", [{"org/new": (401, "RepoNotFound")}, {"org/new": (401, "")}])
def test_a_token_that_does_not_hold(model, converted, hub, refuse):
    hub.refuse = {**refuse, "whoami": (401, "Invalid")}
    error = refusal(model, AccessDenied)
    assert error.message == "The Hub does not accept the token (status 401)."
    assert converted == []


def test_a_repository_that_the_hub_does_not_admit_to_lack(hub):
    """It says 401 of what is not there, too."""
    hub.refuse = {"org/new": (401, "RepoNotFound")}
    assert upload.check("org/new").exists is False
    hub.refuse = {"org/new": (403, "GatedRepo")}
    with pytest.raises(AccessDenied, match="may not write to org/new"):
        upload.check("org/new")


REFUSED = [
    ("create", 403, AccessDenied, "The token may not write to org/new (status 403).", "write access to org"),
    ("create", 404, AccessDenied, "The Hub has no place org/new (status 404).", "Check whether org is"),
    ("preupload", 403, AccessDenied, "The token may not write to org/new (status 403).", "write access to org"),
    ("preupload", 503, DownloadError, "The Hub failed with status 503 for org/new.", "Try again later"),
    ("batch", 429, DownloadError, "The Hub failed with status 429 for org/new.", "Try again later"),
    ("put", 500, DownloadError, "The Hub failed with status 500 for org/new.", "Try again later"),
    ("put", 403, AccessDenied, "The token may not write to org/new (status 403).", "write access to org"),
    ("commit", 400, HFPipeError, "The Hub refused the upload to org/new (status 400).", "See http"),
    ("commit", 413, HFPipeError, "The Hub refused the upload to org/new (status 413).", "See http"),
    ("create", 200, DownloadError, "The upload to org/new failed: ", "Run it again"),
]


@pytest.mark.parametrize(("step", "status", "kind", "message", "hint"), REFUSED)
def test_a_refusal_leaves_the_export_and_says_so(model, converted, hub, step, status, kind, message, hint):
    """The server repeats the token that it was sent."""
    hub.refuse = {step: (status, f"No: Bearer {TOKEN}")}
    error = refusal(model, kind)
    assert error.message.startswith(message)
    assert hint in error.hint
    assert error.hint.endswith(FINISHED)
    assert reports.read(model.parent / "out")["weight_format"] == "int8"


def test_an_upload_that_is_cut(model, converted, hub, monkeypatch):
    monkeypatch.setattr(type(hub).handler, "do_PUT", lambda handler: handler.connection.shutdown(socket.SHUT_RDWR))
    error = refusal(model, DownloadError)
    assert error.message.startswith("The upload to org/new failed: ")
    assert error.hint == f"Run it again: what has been sent is not sent again. {FINISHED}"


def test_huggingface_hub_is_as_before(model, converted, hub, capfd):
    """Its bars are the program's own to switch; here they are on, and none is drawn."""
    with settings(HF_HUB_DISABLE_PROGRESS_BARS=""):
        before = are_progress_bars_disabled()
        push(model)
        assert are_progress_bars_disabled() == before
    assert "%" not in capfd.readouterr().err


def test_a_target_says_what_there_is(hub, tmp_path):
    assert upload.check("org/new").as_dict() == {
        "repo": "org/new",
        "url": f"{hub.url}/org/new",
        "exists": False,
        "private": True,
    }
    hub.repos["org/empty"] = tmp_path / "empty"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitattributes").write_text("")
    target = upload.check("org/empty")
    assert (target.exists, target.is_private) == (True, False)
    assert "POST" not in {request.method for request in hub.requests}
