"""What would be faster is said to a person, once for each model, after the answer; never into a pipe."""

from tests.cli.shell import run_hfpipe

ASK = ("hi", "-n", "2", "--temp", "0")


def test_a_terminal_is_told_once_what_would_be_faster(tiny_gpt2, tmp_path):
    env = {"HFPIPE_CACHE": str(tmp_path)}
    hint = "Run once with --backend openvino to export"
    assert hint not in run_hfpipe("run", tiny_gpt2, *ASK, env=env).err.decode()
    assert hint not in run_hfpipe("run", tiny_gpt2, *ASK, "-b", "torch", env=env, tty="stderr").err.decode()
    said = [run_hfpipe("run", tiny_gpt2, *ASK, env=env, tty="stderr", columns=1000).err.decode() for _ in range(2)]
    assert [hint in one for one in said] == [True, False]
