"""The real libraries without a network: logged metrics are read back, a resumed run has each step once, and a tracker
that fails is reported once and does no harm."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec

import huggingface_hub
import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.report_options import ReportConfig, Tracker
from rlhf_cli.report import trackers
from rlhf_cli.report.trackers import Trackers, require_installed
from tests.conftest import REPOSITORY, child_environment

OPTIONS = {"run": {"name": "a run", "seed": 3}, "optim": {"lr": 1e-06, "betas": [0.9, 0.95]}, "model.token": "s3cret"}
PROJECT = "some project"


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory):
    """As on a user's machine, with useless keys and tokens. Trackio reads its folder when it is imported."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("home")
    for name in ("MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "HF_HUB_OFFLINE"):
        patch.delenv(name, raising=False)
    for name, value in {
        "HOME": str(home),
        "TRACKIO_DIR": str(home / "trackio"),
        "HF_TOKEN": "hf_of_nobody",
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": "0" * 40,
        "MLFLOW_DISABLE_TELEMETRY": "true",  # which the code sets as well; set here to be taken back
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        patch.setenv(name, value)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Allow no connection to other machines, and fail if one was tried. For W&B's own process: `_wandb_is_alone`."""
    tried = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise OSError("no network in this test")
        return connect(self, address)

    def guarded_look_up(host, *args, **kwargs):
        if host not in (None, "localhost", "127.0.0.1", "::1"):
            tried.append(host)
            raise OSError("no network in this test")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    assert tried == []


@pytest.fixture
def said():
    return []


@pytest.fixture
def start(tmp_path, said):
    """Open a run, or resume it after a step, and log some steps. score is 10 x the number of the start + the step."""
    folder = tmp_path / "a run"
    folder.mkdir()
    starts = itertools.count(1)

    def call(tracker, first_step, last_step, finish=True, failed=False):
        number = next(starts)
        config = ReportConfig(trackers=[Tracker(tracker)], project=PROJECT)
        tracked = Trackers(config, f"run of {tmp_path.name}", folder, OPTIONS, first_step, said.append)
        for step in range(first_step + 1, last_step + 1):
            tracked.log(step, {"score": 10.0 * number + step, "loss/policy": 0.5, "kl": float("nan"), "lr": None})
        if last_step:
            tracked.log(last_step, {"eval/accuracy": 0.25})
        if finish:
            tracked.finish(failed)
        assert said == []
        return folder

    return call


# the first start logs steps 1 to 4, of which a checkpoint holds 1 and 2; the second one goes on from there to step 6
PURGED = [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0), (5, 25.0), (6, 26.0)]
KEPT = [(1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0), (5, 25.0), (6, 26.0)]
EVALS = [(4, 0.25), (6, 0.25)]


def events(folder):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    return found.Reload()


def scalars(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_tensorboard_has_the_metrics_and_the_options(start):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    found = events(start("tensorboard", 0, 3))
    assert scalars(found, "score") == [(1, 11.0), (2, 12.0), (3, 13.0)]
    assert scalars(found, "eval/accuracy") == [(3, 0.25)]
    assert sorted(found.Tags()["scalars"]) == ["eval/accuracy", "loss/policy", "score"]  # neither NaN nor None
    text = found.Tensors("options/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"lr": 1e-06' in text
    assert '"model.token": "<hidden>"' in text


def test_tensorboard_drops_the_steps_that_a_resumed_run_repeats(start):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    start("tensorboard", 0, 4)
    found = events(start("tensorboard", 2, 6))
    assert scalars(found, "score") == PURGED
    assert scalars(found, "eval/accuracy") == [(6, 0.25)]


@pytest.mark.parametrize("last_step", [0, 2])
def test_tensorboard_has_a_repeated_evaluation_of_the_resumed_step_once(tmp_path, said, last_step):
    """TensorBoard drops later steps only, and an evaluation may come after the checkpoint of its step."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    for first_step in (0, last_step):
        tracked = Trackers(ReportConfig(), "a", tmp_path, OPTIONS, first_step, said.append)
        for step in range(first_step + 1, last_step + 1):
            tracked.log(step, {"score": float(step)})
        tracked.log(last_step, {"eval/score": 0.5})
        tracked.log(last_step + 1, {"eval/score": 0.75})
        tracked.finish(False)
    assert said == []
    found = events(tmp_path)
    assert scalars(found, "eval/score") == [(last_step, 0.5), (last_step + 1, 0.75)]
    if last_step:
        assert scalars(found, "score") == [(1, 1.0), (2, 2.0)]


def wandb_records(file):
    """The records of a .wandb file: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_files(folder):
    import wandb

    wandb.teardown()  # waits for its process, which writes on after a run's finish
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def wandb_rows(files):
    for file in files:
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }


@pytest.fixture
def _wandb_is_alone(monkeypatch):
    """Give W&B's own process a proxy, and fail if it was used."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        yield
        wandb.teardown()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.usefixtures("_wandb_is_alone")
def test_wandb_resumes_its_run_and_has_each_step_once(start, capfd):
    start("wandb", 0, 4)
    folder = start("wandb", 2, 6)
    files = wandb_files(folder)
    assert len(files) == 2
    rows = list(wandb_rows(files))
    assert [(row["_step"], row["score"]) for row in rows if "score" in row] == KEPT
    assert [(row["_step"], row["eval/accuracy"]) for row in rows if "eval/accuracy" in row] == EVALS
    assert not any("kl" in row or "lr" in row for row in rows)
    run_id = json.loads((folder / "tracker_wandb.json").read_text())["id"]
    runs = [record.run for file in files for record in wandb_records(file) if record.HasField("run")]
    assert {run.run_id for run in runs} == {run_id}
    assert {(run.project, run.display_name) for run in runs} == {(PROJECT, f"run of {folder.parent.name}")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["optim"] == OPTIONS["optim"]
    assert config["model.token"] == "<hidden>"
    exits = [record.exit.exit_code for record in wandb_records(files[1]) if record.HasField("exit")]
    assert exits == [0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("_wandb_is_alone")
def test_wandb_records_that_a_run_failed(start):
    folder = start("wandb", 0, 1, failed=True)
    (file,) = wandb_files(folder)
    assert [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")] == [1]


def test_wandb_without_a_key_is_off_and_does_not_prompt(start, said, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    with pytest.raises(AssertionError):
        start("wandb", 0, 1)
    assert len(said) == 1
    assert "API key" in said[0]
    wandb.teardown()


@pytest.fixture
def mlflow_client():
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    from mlflow.tracking import MlflowClient

    return lambda folder: MlflowClient((folder / "mlruns").as_uri())


def mlflow_run(client):
    (run,) = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    return run


def mlflow_history(client, run, key):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


def test_mlflow_resumes_its_run_and_has_each_step_once(start, mlflow_client, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    client = mlflow_client(start("mlflow", 0, 4, failed=True))
    run = mlflow_run(client)
    assert (run.info.status, run.info.run_name) == ("FAILED", f"run of {tmp_path.name}")
    assert run.data.params == {
        "run.name": "a run",
        "run.seed": "3",
        "optim.lr": "1e-06",
        "optim.betas": "[0.9, 0.95]",
        "model.token": "<hidden>",
    }
    start("mlflow", 2, 6)
    run = mlflow_run(client)
    assert run.info.status == "FINISHED"
    assert mlflow_history(client, run, "score") == KEPT
    assert mlflow_history(client, run, "eval/accuracy") == EVALS
    assert set(run.data.metrics) == {"score", "loss/policy", "eval/accuracy"}
    assert [path.name for path in tmp_path.iterdir()] == ["a run"]  # nothing beside the run folder


def test_mlflow_uses_its_environment_variable(start, mlflow_client, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    assert not (start("mlflow", 0, 1) / "mlruns").exists()
    client = mlflow_client(tmp_path)
    assert mlflow_history(client, mlflow_run(client), "score") == [(1, 11.0)]


@pytest.fixture
def trackio():
    return pytest.importorskip("trackio", reason="trackio is not installed")


def trackio_runs(trackio, folder):
    return [run for run in trackio.Api().runs(PROJECT) if run.name == f"run of {folder.parent.name}"]


def trackio_history(trackio, run, key):
    rows = trackio.SQLiteStorage.get_logs(PROJECT, run.name, run_id=run.id)
    return [(row["step"], row[key]) for row in rows if key in row]


def test_trackio_resumes_its_run_and_has_each_step_once(start, trackio, capfd):
    start("trackio", 0, 4)
    folder = start("trackio", 2, 6)
    (run,) = trackio_runs(trackio, folder)
    assert trackio_history(trackio, run, "score") == KEPT
    assert trackio_history(trackio, run, "eval/accuracy") == EVALS
    assert trackio_history(trackio, run, "kl") == []
    assert run.config["optim"] == OPTIONS["optim"]
    assert run.config["model.token"] == "<hidden>"
    assert capfd.readouterr() == ("", "")


def test_trackio_does_not_resume_another_run_of_its_name(start, trackio, said, monkeypatch):
    folder = start("trackio", 0, 2)
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        trackio.init(PROJECT, name=f"run of {folder.parent.name}", auto_log_cpu=False, auto_log_gpu=False)
    trackio.log({"score": 7.0})
    trackio.finish()
    with pytest.raises(AssertionError):
        start("trackio", 2, 3)
    assert said == [
        "tracker trackio is off, the run continues without it: RuntimeError: the newest run "
        f"run of {folder.parent.name} of project {PROJECT} is not the one to resume"
    ]


def test_a_new_run_with_an_old_name_is_another_run(start, trackio, tmp_path):
    folder = start("trackio", 0, 2)
    (folder / "tracker_trackio.json").unlink()
    start("trackio", 0, 1)
    assert len(trackio_runs(trackio, folder)) == 2


def test_several_trackers_get_the_same_metrics(tmp_path, said, mlflow_client):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = ReportConfig(trackers=[Tracker.tensorboard, Tracker.mlflow], project=PROJECT)
    tracked = Trackers(config, "both", tmp_path, {}, 0, said.append)
    tracked.log(1, {"score": 1.5})
    tracked.finish(False)
    tracked.finish(False)  # once more does nothing
    assert scalars(events(tmp_path), "score") == [(1, 1.5)]
    client = mlflow_client(tmp_path)
    assert mlflow_history(client, mlflow_run(client), "score") == [(1, 1.5)]
    assert said == []


def test_a_tracker_that_fails_is_reported_once_and_the_others_continue(tmp_path, said, mlflow_client):
    """The MLflow run is deleted while it is open."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    config = ReportConfig(trackers=[Tracker.mlflow, Tracker.tensorboard], project=PROJECT)
    tracked = Trackers(config, "a", tmp_path, OPTIONS, 0, said.append)
    client = mlflow_client(tmp_path)
    run_id = mlflow_run(client).info.run_id
    client.delete_run(run_id)
    for step in (1, 2, 3):
        tracked.log(step, {"score": float(step)})
    tracked.finish(False)
    assert said == [
        f"tracker mlflow is off, the run continues without it: MlflowException: The run {run_id} must be in 'active' "
        "lifecycle_stage."
    ]
    assert scalars(events(tmp_path), "score") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_tracker_that_cannot_be_opened_is_reported_and_left_out(tmp_path, said):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "tensorboard").write_text("in the way")
    tracked = Trackers(ReportConfig(), "a", tmp_path, OPTIONS, 0, said.append)
    (message,) = said
    assert message.startswith("tracker tensorboard is off, the run continues without it: FileExistsError: ")
    tracked.log(1, {"score": 1.0})
    tracked.finish(False)
    assert said == [message]


class Stuck:
    """A tracker run that hangs until it is released, as one without a network may."""

    id = "stuck"

    def __init__(self):
        self.go = threading.Event()

    def log(self, step, metrics):
        self.go.wait(30)

    def finish(self, failed):
        self.go.wait(30)


@pytest.fixture
def stuck(monkeypatch):
    run = Stuck()
    monkeypatch.setattr(trackers, "_open", lambda *_: run)
    yield run
    run.go.set()


def test_a_tracker_that_hangs_delays_neither_steps_nor_the_end(tmp_path, said, stuck, monkeypatch):
    monkeypatch.setattr(trackers, "_FINISH_S", 0.1)
    tracked = Trackers(ReportConfig(), "a", tmp_path, OPTIONS, 0, said.append)
    for step in range(100):
        tracked.log(step, {"score": 1.0})
    assert said == []
    tracked.finish(False)
    assert said == [
        "tracker tensorboard is off, the run continues without it: it did not receive the last records in time"
    ]


def test_a_slow_tracker_does_not_fill_the_memory(tmp_path, said, stuck):
    tracked = Trackers(ReportConfig(), "a", tmp_path, OPTIONS, 0, said.append)
    for step in range(1200):
        tracked.log(step, {"score": 1.0})
    assert said == [
        "tracker tensorboard is off, the run continues without it: it is too slow, 1000 records are waiting"
    ]


def test_a_tracker_that_does_not_open_is_not_waited_for(tmp_path, said, stuck, monkeypatch):
    monkeypatch.setattr(trackers, "_OPEN_S", 0.1)
    monkeypatch.setattr(trackers, "_open", lambda *_: stuck.go.wait(30))
    Trackers(ReportConfig(), "a", tmp_path, OPTIONS, 0, said.append)
    assert said == ["tracker tensorboard is off, the run continues without it: it did not open within 0.1 s"]


ABSENT = (
    "report.trackers contains {}, but its package is not installed: run pip install '{}', or remove it from "
    "report.trackers"
)


@pytest.mark.parametrize(
    ("tracker", "package"), [("tensorboard", "tensorboard"), ("wandb", "rlhf[wandb]"), ("mlflow", "rlhf[mlflow]")]
)
def test_a_package_that_is_not_installed_is_an_input_error(tracker, package, monkeypatch, tmp_path):
    """With an empty path, and with a folder of a tracker's name, which Python takes for a package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, tracker, raising=False)
    with pytest.raises(InputError) as caught:
        require_installed([Tracker(tracker)])
    assert str(caught.value) == ABSENT.format(tracker, package)


def test_installed_packages_are_no_error():
    require_installed([tracker for tracker in Tracker if find_spec(tracker.value)])
    require_installed([])


def test_the_module_imports_no_tracker_and_no_torch():
    program = (
        "import sys\nfrom rlhf_cli.report.trackers import require_installed\n"
        "from rlhf_cli.config.report_options import Tracker\n"
        "try:\n    require_installed(list(Tracker))\nexcept ValueError:\n    pass\n"
        "print(*sorted({'torch', 'tensorboard', 'wandb', 'mlflow', 'trackio', 'huggingface_hub'} & sys.modules.keys()))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip() == ""


def test_telemetry_of_the_libraries_is_off(start):
    """By default, MLflow sends usage data and W&B sends crash reports."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    pytest.importorskip("wandb", reason="wandb is not installed")
    before = {name: os.environ.pop(name) for name in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING")}
    start("mlflow", 0, 0)
    start("wandb", 0, 0)
    assert before == {name: os.environ[name] for name in before}
