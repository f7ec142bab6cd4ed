"""What stands under the name of an output is whole, whatever happens; what is left beside it, the next run removes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hfpipe.errors import HFPipeError, UsageError
from hfpipe.export import place
from hfpipe.export.place import check_replaceable, workplace

NAMES = ["out", "*", "[a]", "a?b", "with space", "モデル", "-x", ".hidden", "a.hfpipe-export", "[!o]ut", "out.1"]


def fill(work, text="new"):
    (work.model / "openvino_model.xml").write_text(text)
    (work.temporary / "big").write_text("")


def write_export(folder, text="old"):
    folder.mkdir(parents=True)
    (folder / "openvino_model.xml").write_text(text)
    return folder


def content(folder):
    return (folder / "openvino_model.xml").read_text()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def export(output, text="new"):
    with workplace(output) as work:
        fill(work, text)
        work.finish()


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from hfpipe.export import place
output = Path(sys.argv[1])
with place.workplace(output) as work:
    (work.model / "openvino_model.xml").write_text("new")
    {body}
"""
WAIT = "print('working', flush=True); time.sleep(60)"


def start(output, body=WAIT):
    command = [sys.executable, "-c", SCRIPT.format(body=body), output]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def leave_behind(output, body=WAIT):
    """What a process leaves that is killed in the middle of its work."""
    process = start(output, body)
    if body == WAIT:
        assert process.stdout.readline() == "working\n"
        process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL, process.stderr.read()
    process.communicate()


def killed_after_rename(number):
    """Python that ends its process after so many renames of its work."""
    return (
        "rename, done = Path.rename, []\n"
        "    def last(*paths):\n"
        "        rename(*paths)\n"
        "        done.append(paths)\n"
        f"        if len(done) == {number}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    Path.rename = last\n"
        "    work.finish()"
    )


# Ends


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_export_stands_alone(tmp_path, name):
    export(tmp_path / name)
    assert names(tmp_path) == [name]
    assert names(tmp_path / name) == ["openvino_model.xml"]


def test_nothing_stands_before_it_is_finished(tmp_path):
    with workplace(tmp_path / "out") as work:
        fill(work)
        assert len(names(tmp_path)) == 1
        assert work.model.is_relative_to(tmp_path)
        assert work.temporary.is_relative_to(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), HFPipeError("no")])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    write_export(tmp_path / "out")
    with pytest.raises(type(error)), workplace(tmp_path / "out") as work:
        raise fill(work) or error
    assert names(tmp_path) == ["out"]
    assert content(tmp_path / "out") == "old"


def test_an_old_export_is_replaced_whole(tmp_path):
    (write_export(tmp_path / "out") / "more").write_text("")
    export(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["openvino_model.xml"]
    assert content(tmp_path / "out") == "new"


def test_where_the_last_rename_fails_the_old_export_stays(tmp_path, monkeypatch):
    write_export(tmp_path / "out")
    rename = Path.rename

    def fail_on_the_new_one(self, target):
        if self.name == "model":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert content(tmp_path / "out") == "old"


# Processes


@pytest.mark.parametrize("name", NAMES)
def test_leftovers_are_removed_by_the_next_run_of_that_output_alone(tmp_path, name):
    for one in (name, "another"):
        with workplace(tmp_path / one) as work:
            (left,) = [path for path in tmp_path.iterdir() if work.model.is_relative_to(path)]
            work.model.rename(tmp_path / f"kept-{one}")
            left.rename(tmp_path / f"aside-{one}")
        (tmp_path / f"aside-{one}").rename(left)
    assert len(names(tmp_path)) == 4
    export(tmp_path / name)
    assert names(tmp_path) == sorted([name, left.name, f"kept-{name}", "kept-another"])


def test_a_killed_export_leaves_nothing_under_its_name(tmp_path):
    leave_behind(tmp_path / "out")
    assert len(names(tmp_path)) == 1
    assert not (tmp_path / "out").exists()
    export(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_killed_before_the_last_rename_the_old_export_comes_back(tmp_path):
    output = write_export(tmp_path / "out")
    leave_behind(output, killed_after_rename(1))
    assert not output.exists()
    with pytest.raises(HFPipeError), workplace(output):
        raise HFPipeError("failed")
    assert names(tmp_path) == ["out"]
    assert content(output) == "old"


def test_killed_after_it_the_new_one_stands_and_the_old_one_never_comes_back(tmp_path):
    output = write_export(tmp_path / "out")
    leave_behind(output, killed_after_rename(3))
    assert content(output) == "new"
    (output / "openvino_model.xml").rename(tmp_path / "moved")
    output.rmdir()
    with pytest.raises(HFPipeError), workplace(output):
        raise HFPipeError("failed")
    assert names(tmp_path) == ["moved"]


def test_another_process_at_work_is_not_disturbed(tmp_path):
    output = tmp_path / "out"
    process = start(output)
    assert process.stdout.readline() == "working\n"
    before = names(tmp_path)
    with pytest.raises(HFPipeError, match=f"Another hfpipe is exporting to {output}") as caught:
        export(output)
    assert caught.value.hint == "Wait for it, or name another OUTPUT."
    assert names(tmp_path) == before
    export(tmp_path / "another")
    process.kill()
    process.communicate()
    export(output)
    assert names(tmp_path) == ["another", "out"]


def test_ctrl_c_removes_what_was_begun(tmp_path):
    process = start(tmp_path / "deep" / "out")
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert names(tmp_path) == []


# Folders above


def test_folders_above_are_made_and_kept_with_the_export(tmp_path):
    export(tmp_path / "a" / "b" / "out")
    assert names(tmp_path / "a" / "b") == ["out"]


def test_folders_above_go_with_a_failed_export(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(HFPipeError), workplace(tmp_path / "a" / "b" / "c" / "out"):
        raise HFPipeError("failed")
    assert names(tmp_path / "a") == []


def test_folders_above_stay_where_something_else_came_into_them(tmp_path):
    with workplace(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "mine").write_text("")
    assert names(tmp_path / "a") == ["mine"]


def test_a_file_above(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(HFPipeError, match="Cannot write to") as caught:
            export(output)
        assert "OUTPUT" in caught.value.hint


def test_an_output_that_the_user_has_not_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HFPipeError) as caught, workplace(tmp_path / "file" / "out", variable="HFPIPE_CACHE"):
        pass
    assert caught.value.hint == "Set HFPIPE_CACHE to a folder that you may write to."


def test_a_folder_that_may_not_be_written(tmp_path):
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    else:
        tmp_path.chmod(0o500)
    try:
        with pytest.raises(HFPipeError, match=r"Cannot write to .*: Permission denied"):
            export(tmp_path / "out")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


# What may be replaced


@pytest.mark.parametrize("mark", ["openvino_model.xml", "openvino_encoder_model.xml", "hfpipe.json"])
def test_an_export_may_be_replaced(tmp_path, mark):
    (tmp_path / mark).write_text("")
    check_replaceable(tmp_path)


def test_nothing_and_an_empty_folder_may_be_replaced(tmp_path):
    check_replaceable(tmp_path / "none")
    check_replaceable(tmp_path)


def test_anything_else_is_never_removed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with pytest.raises(UsageError, match="is not an export, and stays as it is"):
            check_replaceable(tmp_path / name)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_appears_while_an_export_is_made_is_not_removed(tmp_path, kind):
    output = tmp_path / "out"
    mine = output / "mine" if kind == "folder" else output
    with workplace(output) as work:
        fill(work)
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(UsageError, match="stays as it is"):
            work.finish()
    assert names(tmp_path) == ["out"]
    assert mine.read_text() == "mine"


def test_temporary_files_go_to_the_disk_of_the_output(tmp_path):
    assert {Path(folder) for folder in place.same_disk_environment(tmp_path).values()} == {tmp_path}
    command = [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"]
    environment = os.environ | place.same_disk_environment(tmp_path)
    assert subprocess.check_output(command, text=True, env=environment).strip() == str(tmp_path)
