"""A run folder loses nothing that was finished: to a kill, to a full disk, to a second process, to another config."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning
from seal_jax.run import journal as checkpoint
from seal_jax.run.journal import RunFolder, as_json, differences, require_room, write_atomically
from seal_jax.seal.rewards import Score

ROOT = Path(__file__).parents[1]


class Counted:
    """Work that says how often it was done."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def not_again():
    raise AssertionError("finished work was done again")


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of work


def test_a_piece_of_work_is_done_once(tmp_path):
    run, work = RunFolder(tmp_path / "run", {"seed": 1}), Counted({"a": [1, None, "é"]})
    assert not run.has("piece")
    assert run.once("piece", work) == run.once("piece", work) == {"a": [1, None, "é"]}
    assert run.has("piece")
    assert work.times == 1
    run.close()
    again = RunFolder(tmp_path / "run", {"seed": 1})
    assert again.has("piece")
    assert again.once("piece", not_again) == {"a": [1, None, "é"]}
    assert again.once("other", Counted(2)) == 2
    lines = (tmp_path / "run" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["piece", "other"]


def test_a_piece_is_on_disk_before_it_is_returned(tmp_path):
    run = RunFolder(tmp_path / "run", {})
    run.once("piece", Counted(1))
    assert (tmp_path / "run" / "journal.jsonl").read_bytes().endswith(b"\n")


def test_work_that_fails_leaves_no_piece(tmp_path):
    run = RunFolder(tmp_path / "run", {})
    with pytest.raises(ZeroDivisionError):
        run.once("piece", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.once_tree("tree", lambda: {"w": 1 / 0}, like={"w": jax.ShapeDtypeStruct((), jnp.float32)})
    assert not run.has("piece")
    assert run.once("piece", Counted(3)) == 3
    tree = run.once_tree("tree", lambda: {"w": jnp.ones(())}, like={"w": jax.ShapeDtypeStruct((), jnp.float32)})
    assert tree["w"] == 1


def test_numbers_return_exactly(tmp_path):
    values = [float(x) for x in np.random.default_rng(0).normal(size=200)]
    values += [float(np.float32(0.1)), 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf, 1 / 3]
    run = RunFolder(tmp_path / "run", {})
    fresh = run.once("floats", lambda: [*values, math.nan])
    run.close()
    kept = RunFolder(tmp_path / "run", {}).once("floats", not_again)
    for found in (fresh, kept):
        assert [float.hex(x) for x in found[:-1]] == [float.hex(x) for x in values]
        assert math.isnan(found[-1])


def test_a_fresh_value_reads_as_a_resumed_one_would(tmp_path):
    """A tuple comes back as a list both times, so that what follows cannot depend on whether a run was killed."""
    score = Score(["red"], [True], [-0.5], [1.0])
    run = RunFolder(tmp_path / "run", {})
    fresh = run.once("scores", lambda: [score])
    run.close()
    kept = RunFolder(tmp_path / "run", {}).once("scores", not_again)
    assert fresh == kept == [[["red"], [True], [-0.5], [1.0], None]]
    assert Score(*kept[0]) == score


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_a_tree_is_made_once_and_returns_exactly(tmp_path, dtype):
    tree = {"a": {"q": jnp.arange(6).reshape(2, 3).astype(dtype) / 3}, "scale": jnp.asarray(0.1)}
    tree["a"]["q"] = tree["a"]["q"].astype(dtype)
    run, work = RunFolder(tmp_path / "run", {}), Counted(tree)
    first = run.once_tree("round_1", work, like=jax.eval_shape(lambda: tree))
    run.close()
    second = RunFolder(tmp_path / "run", {}).once_tree("round_1", not_again, like=jax.eval_shape(lambda: tree))
    assert work.times == 1
    for found in (first, second):
        assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, tree)
        jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_a_folder_with_nothing_but_a_plan_bars_nobody_and_its_plan_goes(tmp_path):
    first = RunFolder(tmp_path / "run", {"a": 1})
    assert first.once("memory", lambda: [4]) == [4]
    first.close()
    again = RunFolder(tmp_path / "run", {"a": 1})
    assert again.once("memory", not_again) == [4]
    again.close()
    other = RunFolder(tmp_path / "run", {"a": 2})
    assert other.once("memory", lambda: [8]) == [8]
    other.once("work", lambda: 1)
    other.close()
    with pytest.raises(ValueError, match=r"a: 2 there, 1 now"):
        RunFolder(tmp_path / "run", {"a": 1})
    assert RunFolder(tmp_path / "run", {"a": 2}).once("memory", not_again) == [8]


def test_half_a_checkpoint_is_no_checkpoint(tmp_path, monkeypatch):
    """A process killed while Orbax writes leaves the piece undone, and the next one does it."""
    tree = {"w": jnp.arange(4.0)}
    script = (
        "import os, sys, jax, jax.numpy as jnp, orbax.checkpoint as ocp\n"
        "from seal_jax.run.journal import RunFolder\n"
        "rename = os.rename\n"
        "def killed(a, b, *rest, **options):\n"
        "    os.kill(os.getpid(), 9) if str(b).endswith('round_1') else rename(a, b, *rest, **options)\n"
        "os.rename = os.replace = killed\n"
        "import pathlib; pathlib.Path.rename = pathlib.Path.replace = killed\n"
        "tree = {'w': jnp.arange(4.0) + 7}\n"
        f"RunFolder({str(tmp_path / 'run')!r}, {{}}).once_tree('round_1', lambda: tree, jax.eval_shape(lambda: tree))\n"
        "print('not killed')\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "checkpoints" / "round_1").exists()
    assert any((tmp_path / "run" / "checkpoints").iterdir())  # what it had begun
    run, work = RunFolder(tmp_path / "run", {}), Counted(tree)
    np.testing.assert_array_equal(run.once_tree("round_1", work, jax.eval_shape(lambda: tree))["w"], tree["w"])
    assert work.times == 1


@pytest.mark.parametrize("tail", [b'{"name": "b", "val', b'{"name": "b", "value": 2}', b"\x00\x00", b'{"na\n'])
def test_a_last_line_cut_short_is_dropped_and_whole_ones_are_kept(tmp_path, tail):
    run = RunFolder(tmp_path / "run", {})
    run.once("a", Counted(1))
    run.close()
    journal = tmp_path / "run" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + tail)
    again = RunFolder(tmp_path / "run", {})
    assert journal.read_bytes() == whole
    assert again.once("a", not_again) == 1
    assert again.once("b", Counted(3)) == 3
    again.close()
    last = RunFolder(tmp_path / "run", {})
    assert (last.once("a", not_again), last.once("b", not_again)) == (1, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Whose folder it is


def test_another_config_is_refused_naming_each_differing_field(tmp_path):
    config = as_json(FineTuning())
    run = RunFolder(tmp_path / "run", config)
    run.once("piece", Counted(1))
    run.close()
    other = as_json(FineTuning(rank=8, projections=("q_proj",), optimiser=Optimiser(clip_norm=2.0)))
    with pytest.raises(ValueError, match="another config") as refused:
        RunFolder(tmp_path / "run", other)
    message = str(refused.value)
    for line in ("rank: 32 there, 8 now", "optimiser.clip_norm: 1.0 there, 2.0 now"):
        assert line in message
    assert "projections: ['q_proj', 'v_proj'] there, ['q_proj'] now" in message
    assert message.count(" there, ") == 3
    assert "--run-folder" in message
    assert RunFolder(tmp_path / "run", config).once("piece", not_again) == 1  # and is left as it was


def test_a_folder_in_which_nothing_was_finished_takes_another_config(tmp_path):
    """A run that a mistake ended at once (a misspelt model) does not bar the way to the mended command."""
    RunFolder(tmp_path / "run", {"model": "smollm"}).close()
    run = RunFolder(tmp_path / "run", {"model": "smollm2-135m"})
    run.once("piece", Counted(1))
    run.close()
    with pytest.raises(ValueError, match="model: 'smollm2-135m' there, 'smollm' now"):
        RunFolder(tmp_path / "run", {"model": "smollm"})


def test_fields_that_came_or_went_differ_too():
    found = list(differences({"a": {"b": 1, "c": 2}, "gone": 3}, {"a": {"b": 1, "c": 4}, "new": 5}))
    assert found == [("a.c", 2, 4), ("gone", 3, None), ("new", None, 5)]
    assert list(differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]})) == []


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(ValueError, match="neither empty nor a run folder"):
        RunFolder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OSError, match=r"thesis\.tex"):
        RunFolder(tmp_path / "thesis.tex", {})


def test_a_second_process_is_locked_out_until_the_first_ends(tmp_path):
    run = RunFolder(tmp_path / "run", {})
    run.once("piece", Counted(1))
    script = f"from seal_jax.run.journal import RunFolder; RunFolder({str(tmp_path / 'run')!r}, {{}})"
    second = [sys.executable, "-c", script]
    refused = subprocess.run(second, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "another process is running here" in refused.stderr
    assert "--run-folder" in refused.stderr
    run.close()
    assert subprocess.run(second, cwd=ROOT, capture_output=True, text=True, check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk takes root's rights")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_says_what_to_do_and_keeps_what_was_finished(small_disk):
    run = RunFolder(small_disk / "run", {})
    run.once("small", Counted([1, 2, 3]))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(150_000))
    with pytest.raises(OSError, match="make room, then run the same command again") as full:
        run.once("large", Counted("x" * 200_000))
    assert full.value.errno == errno.ENOSPC
    assert str(small_disk / "run") in str(full.value)
    assert not run.has("large")
    ballast.unlink()  # room again, in the same process ...
    assert run.once("large", Counted("y" * 20)) == "y" * 20
    run.close()
    again = RunFolder(small_disk / "run", {})  # ... and in the next
    assert again.once("small", not_again) == [1, 2, 3]
    assert again.once("large", not_again) == "y" * 20


def test_a_disk_too_full_for_a_checkpoint_says_so_and_leaves_none(small_disk):
    run = RunFolder(small_disk / "run", {})
    tree = {"w": jnp.asarray(np.random.default_rng(0).normal(size=200_000))}
    with pytest.raises(OSError, match="the disk is full"):
        run.once_tree("round_1", lambda: tree, jax.eval_shape(lambda: tree))
    assert not (small_disk / "run" / "checkpoints" / "round_1").exists()


def test_a_run_asks_for_room_before_it_starts(tmp_path, monkeypatch):
    require_room(tmp_path / "not" / "yet" / "there", needed=1)
    usage = type("Usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    require_room(tmp_path, needed=5 * 2**20)
    with pytest.raises(OSError, match=r"needs about 12 MiB and its disk has 5 MiB free.*--run-folder") as full:
        require_room(tmp_path / "run", needed=12 * 2**20)
    assert full.value.errno == errno.ENOSPC


# ---------------------------------------------------------------------------------------------------------------------
# Files that are replaced


def test_a_kill_while_a_file_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_atomically(file, "old")

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    for step in ("fsync", "replace"):
        with monkeypatch.context() as moment:
            moment.setattr(checkpoint.os, step, kill)
            with pytest.raises(Killed):
                write_atomically(file, "new" * 1000)
        assert file.read_text(encoding="utf-8") == "old"
    write_atomically(file, "new é")
    assert file.read_text(encoding="utf-8") == "new é"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_kill_while_a_run_claims_its_folder_does_not_bar_it(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as moment:
        moment.setattr(checkpoint.os, "replace", kill)
        with pytest.raises(Killed):
            RunFolder(tmp_path / "run", {"seed": 1})
    assert os.listdir(tmp_path / "run")
    run = RunFolder(tmp_path / "run", {"seed": 1})
    assert run.once("piece", Counted(1)) == 1
    run.close()
    assert RunFolder(tmp_path / "run", {"seed": 1}).once("piece", not_again) == 1
