"""A run folder loses nothing that was finished: to a kill, to a full disk, to a second process, to another config."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning
from seal_jax.run import checkpoints, ends
from seal_jax.run import journal as checkpoint
from seal_jax.run.journal import RunFolder, as_json, differences, digest, read_run, require_room, write_atomically
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
    """A record comes back by name both times, so that what follows cannot depend on whether a run was killed."""
    score = Score(["red"], [True], [-0.5], [1.0])
    run = RunFolder(tmp_path / "run", {})
    fresh = run.once("scores", lambda: [score])
    run.close()
    kept = RunFolder(tmp_path / "run", {}).once("scores", not_again)
    named = {"answers": ["red"], "verdicts": [True], "log_likelihoods": [-0.5], "losses": [1.0]}
    named |= {"problem": None, "cut": []}
    assert fresh == kept == [named]
    assert Score(**kept[0]) == score


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
    (tmp_path / "run").mkdir()  # or it would go with the plan
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
# Files that were altered


def worked(folder: Path, config: dict | None = None, pieces: int = 4) -> Path:
    """A run folder in which pieces 0, 1, ... were finished, and a tree between them."""
    run = RunFolder(folder, config or {"seed": 1})
    for number in range(pieces):
        run.once(f"piece {number}", lambda number=number: {"number": number})
        if number == 1:
            run.once_tree("tree", lambda: TREE, jax.eval_shape(lambda: TREE))
    run.close()
    return folder


TREE = {"w": jnp.arange(300.0), "n": jnp.asarray(3)}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("line", range(5))
def test_after_an_altered_line_all_is_done_again_and_said(tmp_path, line):
    journal = worked(tmp_path / "run") / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for place in (2, len(lines[line]) // 2, len(lines[line]) - 8, len(lines[line]) - 1):
        journal.write_bytes(b"".join(lines))
        flip(journal, sum(map(len, lines[:line])) + place)
        said = []
        run = RunFolder(tmp_path / "run", {"seed": 1}, said.append)
        whole = [f"piece {number}" for number in range(4) if number + (number > 1) < line]
        assert [name for name in (f"piece {number}" for number in range(4)) if run.has(name)] == whole
        if said or line < 4:  # an end of line that is lost makes the last line one that a kill cut short
            assert f"line {line + 1} is damaged" in said[0]
            assert journal.with_suffix(".damaged").read_bytes()
        assert run.once("piece 3", Counted("again")) == "again"
        run.close()
        assert RunFolder(tmp_path / "run", {"seed": 1}, said.append).once("piece 3", not_again) == "again"


def test_a_line_that_is_missing_or_stands_elsewhere_is_noticed(tmp_path):
    journal = worked(tmp_path / "run") / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for order in ((0, 2, 3, 4), (0, 2, 1, 3, 4), (0, 0, 1, 2, 3, 4)):
        journal.write_bytes(b"".join(lines[n] for n in order))
        said = []
        run = RunFolder(tmp_path / "run", {"seed": 1}, said.append)
        assert "line 2 is damaged" in said[0]
        assert run.has("piece 0")
        assert not run.has("piece 1")
        run.close()


def test_another_runs_journal_is_not_read(tmp_path):
    worked(tmp_path / "run")
    journal = worked(tmp_path / "other", {"seed": 2}) / "journal.jsonl"
    (tmp_path / "run" / "journal.jsonl").write_bytes(journal.read_bytes())
    said = []
    assert not RunFolder(tmp_path / "run", {"seed": 1}, said.append).has("piece 0")
    assert "line 1 is damaged" in said[0]


def test_a_damaged_first_line_lets_no_other_config_in(tmp_path):
    journal = worked(tmp_path / "run") / "journal.jsonl"
    flip(journal, 12)
    before = journal.read_bytes()
    with pytest.raises(ValueError, match=r"another config(.|\n)*seed: 1 there, 2 now"):
        RunFolder(tmp_path / "run", {"seed": 2})
    assert journal.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"seed": 7, "schema": 3}', b"\xff" * 9, b"[" * 100_000])
def test_a_damaged_config_is_written_again_where_the_journal_says_whose_it_is(tmp_path, content):
    file = worked(tmp_path / "run") / "config.json"
    whole = file.read_bytes()
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=r"nothing says what was run here|another config"):
        RunFolder(tmp_path / "run", {"seed": 2})
    said = []
    assert RunFolder(tmp_path / "run", {"seed": 1}, said.append).once("piece 3", not_again) == {"number": 3}
    assert "config.json was damaged or is gone" in said[0]
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("schema", "words"), [(2, "schema 2 in config.json"), (None, "no schema number in config.json")]
)
def test_a_folder_of_another_version_is_refused_by_name(tmp_path, schema, words):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"seed": 1} | ({} if schema is None else {"schema": schema})))
    (folder / "journal.jsonl").write_text('{"name": "piece", "value": [1, 2]}\n')
    with pytest.raises(ValueError, match=rf"another version of seal_jax \({words}, expected {checkpoint.SCHEMA}\)"):
        RunFolder(folder, {"seed": 1})


def damage(how: str, path: Path) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if how == "gone":
        shutil.rmtree(path)
    elif how == "empty":
        [file.unlink() for file in files]
    elif how == "cut":
        max(files, key=lambda file: file.stat().st_size).write_bytes(b"")
    else:
        other = jax.tree.map(lambda leaf: leaf + 1, TREE)
        checkpoints.save(path, other)


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "another"])
def test_a_checkpoint_that_is_not_the_one_is_made_again_and_said(tmp_path, how):
    path, said = worked(tmp_path / "run") / "checkpoints" / "tree", []
    damage(how, path)
    run, work = RunFolder(tmp_path / "run", {"seed": 1}, said.append), Counted(TREE)
    found = run.once_tree("tree", work, jax.eval_shape(lambda: TREE))
    jax.tree.map(np.testing.assert_array_equal, found, TREE)
    assert work.times == 1
    assert f"{path} is {'gone' if how == 'gone' else 'damaged'}; it is made again" in said
    run.close()
    again = RunFolder(tmp_path / "run", {"seed": 1}).once_tree("tree", not_again, jax.eval_shape(lambda: TREE))
    jax.tree.map(np.testing.assert_array_equal, again, TREE)


def test_a_checkpoint_that_comes_out_differently_ends_the_run(tmp_path):
    path = worked(tmp_path / "run") / "checkpoints" / "tree"
    damage("gone", path)
    other = jax.tree.map(lambda leaf: leaf + 1, TREE)
    with pytest.raises(ValueError, match=r"made again it is another one.*--run-folder"):
        RunFolder(tmp_path / "run", {"seed": 1}).once_tree("tree", lambda: other, jax.eval_shape(lambda: TREE))


def test_a_checkpoint_that_the_journal_does_not_know_is_not_read(tmp_path):
    """A kill between the two: the piece is done again."""
    run = RunFolder(tmp_path / "run", {})
    checkpoints.save(tmp_path / "run" / "checkpoints" / "tree", jax.tree.map(lambda leaf: leaf + 1, TREE))
    found = run.once_tree("tree", lambda: TREE, jax.eval_shape(lambda: TREE))
    jax.tree.map(np.testing.assert_array_equal, found, TREE)


def test_another_runs_folder_is_read_only_where_it_is_whole(tmp_path):
    folder = worked(tmp_path / "run")
    kept = read_run(folder)
    assert kept.config["seed"] == 1
    assert kept.pieces["piece 3"] == {"number": 3}
    assert kept.trees == {"tree": checkpoints.tree_digest(TREE)}
    flip(folder / "journal.jsonl", 200)
    with pytest.raises(ValueError, match=r"journal\.jsonl: line \d is damaged"):
        read_run(folder)
    (folder / "config.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="no run folder"):
        read_run(folder)
    with pytest.raises(ValueError, match="no run folder"):
        read_run(tmp_path / "none")


@given(st.data())
def test_whatever_a_journal_holds_it_opens_or_is_refused(data):
    """Bits, cuts and joins of a real journal and config."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        run = RunFolder(folder, {"seed": 1})
        for number in range(3):
            run.once(f"piece {number}", lambda number=number: [number])
        run.close()
        file = folder / data.draw(st.sampled_from(["journal.jsonl", "config.json"]))
        content = bytearray(file.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
            content[place] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(content)))
        file.write_bytes(content[:cut] + data.draw(st.sampled_from([b"", b"\n", bytes(content[cut // 2 :])])))
        try:
            opened = RunFolder(folder, {"seed": 1}, lambda text: None)
        except ValueError:
            return
        for number in range(3):
            assert opened.once(f"piece {number}", lambda number=number: [number]) == [number]
        opened.close()


def test_arrays_are_told_apart_by_all_their_bytes():
    one = np.arange(5000.0)
    other = one.copy()
    other[2500] += 1e-12
    assert len({digest([array]) for array in (one, other, one.astype(np.float32), one.reshape(50, 100))}) == 4
    assert digest({"a": (one, None)}) == digest({"a": (one.copy(), None)})
    assert digest(Score(["a"], [True], [], [])) != digest(Score(["b"], [True], [], []))
    assert digest(FineTuning()) != digest(FineTuning(rank=3))


# ---------------------------------------------------------------------------------------------------------------------
# Seconds


def test_seconds_add_up_over_processes_and_a_finished_run_takes_none(tmp_path):
    for leg in range(3):
        run = RunFolder(tmp_path / "run", {})
        run.clock = iter([{"a": 2.0, "total": 3.0}, {"a": 2.0, "b": 1.0, "total": 5.0}]).__next__
        run.once("first", Counted(1))  # in the first leg
        if leg:
            run.once("second", Counted(2))  # in the second
        timings = run.timings
        run.close()
        legs = min(leg + 1, 2)
        assert timings == {"a": 2.0 * legs, "total": 3.0 * legs}
    assert read_run(tmp_path / "run").timings == timings


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


def test_a_disk_too_full_for_a_checkpoint_says_so_in_one_sentence_and_leaves_none(small_disk, caplog):
    run = RunFolder(small_disk / "run", {})
    tree = {"w": jnp.asarray(np.random.default_rng(0).normal(size=200_000))}
    with pytest.raises(OSError, match="the disk is full"):
        run.once_tree("round_1", lambda: tree, jax.eval_shape(lambda: tree))
    assert not (small_disk / "run" / "checkpoints" / "round_1").exists()
    assert caplog.text == ""  # Orbax logs 200 lines of it


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


def test_a_damaged_checkpoint_leaves_exceptions_that_are_lost_to_who_heard_them_before(tmp_path, monkeypatch):
    class Dropping:
        def __del__(self):
            1 / 0  # noqa: B018

    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    (tmp_path / "tree").mkdir()
    assert checkpoints.restore(tmp_path / "tree", {"a": jax.ShapeDtypeStruct((1,), np.float32)}, "digest") is None
    Dropping()
    assert [lost.exc_type for lost in heard] == [ZeroDivisionError]


def test_what_a_failed_restore_leaves_behind_is_not_told_after_the_command_either(tmp_path, monkeypatch):
    class Late:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    (tmp_path / "tree").mkdir()
    like = {"a": jax.ShapeDtypeStruct((1,), np.float32)}
    assert ends.ended(lambda: checkpoints.restore(tmp_path / "tree", like, "digest")) == 0
    Late()
    assert heard == []
