"""Trackers: they get every figure, a run that carries on is one run there, and none of their troubles stops a run.

W&B and trackio are the real packages, where they are installed: W&B offline, without a network, and with a local server
that stands in for the service; trackio as it stores on this machine.
"""

from __future__ import annotations

import gzip
import http.server
import importlib
import json
import math
import os
import resource
import struct
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from seal_jax.run import trackers
from seal_jax.run.trackers import MetricsWriter, Sink, Tracker, require, without_keys

KEY = "0123456789abcdef" * 3  # of the shape that W&B accepts
LOSSES = [("round 1/inner loop", step, {"loss": 1 / (step + 1)}) for step in range(5)]
ENTRIES = [*LOSSES, ("round 1", 0, {"accuracy": 0.25, "nothing": None}), ("round 2/inner loop", 0, {"loss": 0.5})]


def write(folder: Path, kind: str, entries=ENTRIES, **about) -> list[str]:
    """A run's metrics; returns what it said."""
    said: list[str] = []
    with MetricsWriter(folder, Tracker(kind), say=said.append, **about) as metrics:
        for entry in entries:
            metrics.write(*entry)
    return said


def lines(folder: Path) -> list[tuple]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(entry["phase"], entry["step"], entry["values"]) for entry in entries]


def events(folder: Path) -> list[tuple]:
    """The scalars in a folder's event files, oldest file first: tag, step, value."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.name.rpartition(".")[2]):
        content = path.read_bytes()
        while content:  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


# Always


def test_none_keeps_the_lines_and_nothing_else(tmp_path):
    assert write(tmp_path, "none") == []
    assert lines(tmp_path) == ENTRIES
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_is_the_default_and_gets_every_figure(tmp_path):
    assert Tracker().kind == "tensorboard"
    assert write(tmp_path, Tracker().kind) == []
    assert lines(tmp_path) == ENTRIES
    expected = [
        (f"{phase}/{name}".replace(" ", "_"), step, pytest.approx(value))  # tensorboard's tags hold no blanks
        for phase, step, values in ENTRIES
        for name, value in values.items()
        if value is not None
    ]
    assert events(tmp_path) == expected


def test_tensorboard_carries_on_in_a_file_of_its_own(tmp_path):
    write(tmp_path, "tensorboard", LOSSES[:2])
    write(tmp_path, "tensorboard", LOSSES[2:])
    assert [step for _, step, _ in events(tmp_path)] == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
@pytest.mark.parametrize("installed", [None, types.ModuleType("a folder of that name")])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(kind, installed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, installed)  # None: as Python marks what cannot be imported
    with pytest.raises(ValueError, match=rf"not installed.*pip install 'seal_jax\[{kind}\]'.*--tracker\.kind tensorb"):
        MetricsWriter(tmp_path / "run", Tracker(kind))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_start_is_said_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    (said,) = write(tmp_path, "tensorboard")
    assert "tensorboard could not be started" in said and str(tmp_path / "metrics.jsonl") in said
    assert lines(tmp_path) == ENTRIES


def test_a_disk_that_fills_up_under_a_tracker_is_said_once_and_the_run_goes_on(tmp_path):
    values = {f"v{i}": 1.0 for i in range(100)}  # an event each, but one line: the limit meets the events alone
    entries = [("inner", step, values) for step in range(60)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, before[1]))  # bytes a file
    try:
        (said,) = write(tmp_path, "tensorboard", entries)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "tensorboard failed (" in said and "File too large" in said
    assert lines(tmp_path) == entries


def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    freed, got, said = threading.Event(), [], []

    def slow(run):
        freed.wait()
        run.say("started")
        return Sink(lambda tag, step, values: got.append(step), got.append)

    monkeypatch.setitem(trackers.SINKS, "tensorboard", slow)
    with MetricsWriter(tmp_path, say=said.append) as metrics:
        for step in range(10):
            metrics.write("inner", step, {"loss": 1.0})
    metrics.close()
    assert len(said) == 1 and "left behind" in said[0]
    freed.set()  # now it wakes up: it must not speak into whatever runs then
    metrics._tracking.join()
    assert len(said) == 1
    assert got == [*range(10), True]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SystemExit(1)])
def test_a_failure_under_way_is_said_once_and_the_tracker_is_closed(error, tmp_path, monkeypatch):
    said, closed, full = [], threading.Event(), threading.Event()

    def log(tag, step, values) -> None:
        full.wait()
        raise error

    monkeypatch.setitem(trackers.SINKS, "tensorboard", lambda run: Sink(log, lambda ok: None if ok else closed.set()))
    with MetricsWriter(tmp_path, say=said.append) as metrics:
        for step in range(100):
            metrics.write("inner", step, {"loss": 1.0})
        full.set()
    assert len(said) == 1 and f"failed ({error})" in said[0]
    assert closed.is_set()
    assert len(lines(tmp_path)) == 100


@pytest.mark.parametrize("ok", [True, False])
def test_a_tracker_learns_whether_the_run_ended_well(ok, tmp_path, monkeypatch):
    ends: list[bool] = []
    monkeypatch.setitem(trackers.SINKS, "tensorboard", lambda run: Sink(lambda *entry: None, ends.append))
    metrics = MetricsWriter(tmp_path)
    metrics.__exit__(None if ok else KeyboardInterrupt, None, None)
    assert ends == [ok]


def test_settings_that_a_tracker_receives_hold_no_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    received = []

    def start(run):
        received.append(run)
        return Sink(lambda *entry: None, lambda ok: None)

    monkeypatch.setitem(trackers.SINKS, "tensorboard", start)
    MetricsWriter(tmp_path / "a", settings={"note": "sk-very-secret", "rank": 32}).close()
    assert received[0].settings == {"note": "[key]", "rank": 32} and received[0].name == "a"


def test_keys_are_taken_out_of_settings_and_of_messages(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("HF_TOKEN", "sk-very-secret-and-longer")
    monkeypatch.setenv("OTHER_KEY", "none")  # no secret
    settings = {
        "grader": {"key_variable": "OPENAI_API_KEY", "urls": ["https://me:pass@host/v1", "http://host/?api_key=x&n=1"]},
        "note": "sk-very-secret-and-longer, sk-very-secret, none",
        "rank": 32,
        "data": None,
    }
    assert without_keys(settings) == {
        "grader": {
            "key_variable": "OPENAI_API_KEY",
            "urls": ["https://[key]@host/v1", "http://host/?api_key=[key]&n=1"],
        },
        "note": "[key], [key], none",
        "rank": 32,
        "data": None,
    }
    said: list[str] = []

    def start(run):
        raise ValueError("no entry for sk-very-secret\nat https://host/?write_token=abc")

    monkeypatch.setitem(trackers.SINKS, "tensorboard", start)
    MetricsWriter(tmp_path, say=said.append).close()
    assert "(no entry for [key] at https://host/?write_token=[key])" in said[0]


def test_the_id_is_kept_for_each_tracker_and_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "tracker.json"
    first = trackers.run_id(path, "wandb")
    other = trackers.run_id(path, "trackio")
    assert first != other
    assert (trackers.run_id(path, "wandb"), trackers.run_id(path, "trackio")) == (first, other)
    for damaged in ('{"wandb": "12', "[]", '{"wandb": 3}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"tracker\.json is damaged.*Remove it"):
            trackers.run_id(path, "wandb")


# The lines


def test_metrics_are_json_lines_and_events_and_carry_on(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("inner", 1, {"loss": np.float32(2.5), "accuracy": np.float32(0.5), "gradient_norm": math.nan})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1, "pha')  # killed here
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("inner", 2, {"loss": math.inf, "accuracy": None})
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["phase"], entry["step"], entry["values"]) for entry in entries] == [
        ("inner", 1, {"loss": 2.5, "accuracy": 0.5, "gradient_norm": None}),
        ("inner", 2, {"loss": None, "accuracy": None}),
    ]
    assert all(entry["time"] > 1.7e9 for entry in entries)
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"inner/loss" in events and b"inner/gradient_norm" not in events


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("sft", 3, {"loss": 1.0})
        assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


# trackio


@pytest.fixture(scope="module")
def trackio(tmp_path_factory):
    if "trackio" not in sys.modules:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))  # it reads this when it is imported
            for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "HF_TOKEN"):
                patch.delenv(name, raising=False)
            pytest.importorskip("trackio")
    return importlib.import_module("trackio")


def stored(project: str) -> dict[str, list[tuple]]:
    """What trackio holds: of each run by name, the step and the figures of each entry."""
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    extra = {"timestamp", "step"}
    return {
        run["name"]: [
            (row["step"], {name: value for name, value in row.items() if name not in extra})
            for row in storage.get_logs(project, run["name"], run_id=run["id"])
        ]
        for run in storage.get_run_records(project)
    }


def test_trackio_gets_every_figure_and_a_run_that_carries_on_is_one_run(trackio, tmp_path):
    for folder, entries in (("a", LOSSES[:2]), ("a", [*LOSSES[2:], *ENTRIES[5:]]), ("b", LOSSES[:1])):
        tracker = Tracker("trackio", project="carries-on")
        with MetricsWriter(tmp_path / folder, tracker, name="squad-demo", settings={"rank": 32}) as metrics:
            for entry in entries:
                metrics.write(*entry)
    runs = stored("carries-on")
    ids = [json.loads((tmp_path / folder / "tracker.json").read_text())["trackio"] for folder in "ab"]
    assert sorted(runs) == sorted(f"squad-demo-{id}" for id in ids)
    assert sorted(runs[f"squad-demo-{ids[0]}"], key=str) == sorted(
        [
            (step, {f"{phase}/{name}": value for name, value in values.items() if value is not None})
            for phase, step, values in ENTRIES
        ],
        key=str,
    )
    assert len(runs[f"squad-demo-{ids[1]}"]) == 1
    (config,) = (run.config for run in trackio.Api().runs("carries-on") if run.name.endswith(ids[0]))
    assert config["rank"] == 32


# Weights & Biases


def next_second() -> None:
    """W&B names a run's folder by id and second: runs that carry on do not meet, as no run starts within one."""
    time.sleep(1.01 - time.time() % 1)


class Service(http.server.ThreadingHTTPServer):
    """Stands in for W&B: takes every run, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self):
        self.received: list[tuple[str, str]] = []  # path, body
        self.gone = False
        super().__init__(("127.0.0.1", 0), _Answer)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Says nothing of connections that W&B cuts."""

    def leave(self) -> None:
        """Answers nobody any more."""
        self.gone = True  # for the connections that are open
        self.shutdown()
        self.server_close()

    def calls(self, operation: str) -> list[dict]:
        """The variables of every call of a GraphQL operation."""
        bodies = [json.loads(body) for path, body in self.received if path == "/graphql"]
        return [body["variables"] for body in bodies if body.get("operationName") == operation]

    def history(self) -> list[dict]:
        """The rows of every run."""
        bodies = [json.loads(body) for path, body in self.received if path.endswith("/file_stream")]
        files = [body.get("files", {}).get("wandb-history.jsonl", {}) for body in bodies]
        return [json.loads(row) for file in files for row in file.get("content", [])]


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.gone:
            self.close_connection = True
            return
        self.server.received.append((self.path, body.decode(errors="replace")))
        asked = json.loads(body).get("variables", {}) if self.path == "/graphql" else {}
        entity = {"id": "e", "name": "me"}
        bucket = {
            "id": "aWQ=", "name": asked.get("name"), "displayName": "d", "description": "", "config": "{}",
            "sweepName": None, "project": {"id": "p", "name": "seal_jax", "entity": entity}, "historyLineCount": 0,
        }  # fmt: skip
        files = [{"name": name, "uploadUrl": f"{self.server.url}/upload"} for name in asked.get("files", [])]
        self._reply(
            {
                "data": {
                    "viewer": {"id": "v", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}},
                    "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []},
                    "model": {"name": "seal_jax", "bucket": None, "entity": entity},
                    "upsertBucket": {"bucket": bucket, "inserted": True},
                    "createRunFiles": {"runID": "aWQ=", "uploadHeaders": [], "files": files},
                }
            }
            if self.path == "/graphql"
            else {"exitcode": None, "limits": {}}
        )

    do_PUT = do_POST

    def _reply(self, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """W&B as on a machine where nobody has logged in."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.chdir(home)  # it reads `wandb/settings` of the working directory
    yield wandb
    wandb.teardown()


@pytest.fixture
def service(wandb, monkeypatch):
    service = Service()
    monkeypatch.setenv("WANDB_BASE_URL", service.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield service
    service.leave()


def test_wandb_without_a_key_is_refused_before_anything_is_written(wandb, tmp_path):
    with pytest.raises(ValueError, match=r"wandb login.*WANDB_API_KEY.*WANDB_MODE=offline"):
        MetricsWriter(tmp_path / "run", Tracker("wandb"))
    assert not (tmp_path / "run").exists()


def test_a_wandb_key_of_another_shape_is_refused_and_not_shown(wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "too-short-for-a-key")
    with pytest.raises(ValueError, match=r"WANDB_API_KEY invalid") as refused:
        require(Tracker("wandb"))
    assert "too-short" not in str(refused.value)


def test_a_project_that_wandb_would_not_take_is_refused(wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(ValueError, match=r"--tracker\.project is 'me/seal'; expected a name without"):
        require(Tracker("wandb", project="me/seal"))


def test_wandb_offline_keeps_the_run_in_the_folder_and_carries_on_under_one_id(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    for entries in (ENTRIES[:3], ENTRIES[3:]):
        next_second()
        (said,) = write(folder, "wandb", entries)
        assert "to send it, wandb sync" in said
        kept = Path(said.rpartition(" ")[2])
        assert kept.is_dir() and folder in kept.parents
    assert lines(folder) == ENTRIES
    id = json.loads((folder / "tracker.json").read_text())["wandb"]
    wandb.teardown()  # as the end of the program does: now all is written
    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{id}.wandb"] * 2
    assert sorted(b"round 2/inner loop/loss" in path.read_bytes() for path in files) == [False, True]


def test_wandb_gets_every_figure_on_its_phase_s_axis_and_no_key(service, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["squad.py", "--data", f"https://host/?token={KEY}"])  # W&B reads it by itself
    settings = {"rank": 32, "note": f"{KEY} https://me:pass@host"}
    said = write(tmp_path / "run", "wandb", name="squad-demo", settings=settings)
    assert len(said) == 1 and f"{service.url}/me/seal_jax/runs/" in said[0]
    rows = [{name: value for name, value in row.items() if not name.startswith("_")} for row in service.history()]
    assert rows == [
        {f"{phase}/{name}": value for name, value in [*values.items(), ("step", step)] if value is not None}
        for phase, step, values in ENTRIES
    ]
    first, *_, last = service.calls("UpsertBucket")
    assert (first["project"], first["displayName"]) == ("seal_jax", "squad-demo")
    config = json.loads(first["config"])
    assert (config["rank"]["value"], config["note"]["value"]) == (32, "[key] https://[key]@host")
    metrics = json.loads(last["config"])["_wandb"]["value"]["m"]  # "1": its name, "5": the place of its axis, from one
    assert {metric["1"]: metrics[metric["5"] - 1]["1"] for metric in metrics if "5" in metric} == {
        "round 1/inner loop/loss": "round 1/inner loop/step",
        "round 1/accuracy": "round 1/step",
        "round 2/inner loop/loss": "round 2/inner loop/step",
    }
    assert not any(KEY in body for _, body in service.received)
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_run_that_carries_on_asks_wandb_for_the_same_run(service, tmp_path):
    for entries in (ENTRIES[:3], ENTRIES[3:]):
        next_second()
        write(tmp_path / "run", "wandb", entries)
    write(tmp_path / "another", "wandb", ENTRIES[:1])
    first, second, other = [call["name"] for call in service.calls("RunResumeStatus")]
    assert first == second == json.loads((tmp_path / "run" / "tracker.json").read_text())["wandb"]
    assert other != first


def test_without_a_network_wandb_keeps_the_run_on_disk_and_says_so(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(trackers, "INIT_SECONDS", 0.5)
    refused, kept = write(tmp_path / "run", "wandb")
    assert "did not take the run" in refused and "the run goes on" in refused
    wandb.teardown()
    (file,) = Path(kept.rpartition(" ")[2]).glob("*.wandb")
    assert b"round 2/inner loop/loss" in file.read_bytes()
    assert lines(tmp_path / "run") == ENTRIES


def test_a_network_that_goes_away_stops_nothing_and_the_rest_can_be_sent(wandb, service, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.5)
    said: list[str] = []
    there = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        there.set()

    with MetricsWriter(tmp_path / "run", Tracker("wandb"), say=say) as metrics:
        there.wait()  # the run is there; now the service goes away
        service.leave()
        for entry in ENTRIES:
            metrics.write(*entry)
    assert len(said) == 2 and "has not taken everything" in said[1]
    wandb.teardown()
    (file,) = Path(said[1].rpartition(" ")[2]).glob("*.wandb")
    assert b"round 2/inner loop/loss" in file.read_bytes()
    assert lines(tmp_path / "run") == ENTRIES
