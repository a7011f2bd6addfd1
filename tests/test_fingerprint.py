"""Other weights at the same path are seen, and a model is not read for it for long."""

from __future__ import annotations

import os
import shutil

import pytest

from seal_jax.io import fingerprint, hub
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


def test_a_copy_is_the_same_and_each_file_counts(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (0, 0))
    found = fingerprint.of_model(str(model))
    assert fingerprint.of_model(str(copy)) == found
    (copy / "README.md").write_text("no part of the model")
    assert fingerprint.of_model(str(copy)) == found
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        whole = (copy / file).read_bytes()
        (copy / file).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        assert fingerprint.of_model(str(copy)) != found, file
        (copy / file).write_bytes(whole)
    assert fingerprint.of_model(str(copy)) == found


def test_of_large_weights_the_header_and_blocks_all_over_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "BLOCK", 10)
    monkeypatch.setattr(fingerprint, "BLOCKS", 8)
    file = tmp_path / "model.gguf"
    content = bytearray(os.urandom(2000))
    file.write_bytes(content)
    found = fingerprint.of_files([file])
    for place in (0, 9, 285, 1999):  # the header, a block in the middle, the last one
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert fingerprint.of_files([file]) != found
    file.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert fingerprint.of_files([file]) == found  # as the module says
    file.write_bytes(content + b"0")
    assert fingerprint.of_files([file]) != found
    file.write_bytes(bytes(2000))  # trained on: other everywhere
    assert fingerprint.of_files([file]) != found


def test_the_embedded_model_is_known_without_being_read(monkeypatch):
    monkeypatch.setattr(hub, "find_model", None)
    assert fingerprint.of_model("smollm2-135m") == hub.EMBEDDED["smollm2-135m"].member_sha256[:16]


def test_other_programs_know_a_model_by_its_repository_or_its_path(model, monkeypatch):
    assert hub.published_as("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub.published_as("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    monkeypatch.chdir(model.parent)
    assert hub.published_as(model.name) == str(model)
