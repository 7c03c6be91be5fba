"""Rows in W&B and MLflow: those of metrics.jsonl, each once, in one run there however often ours starts."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scmbert_jax.errors import ConfigError, ScmbertWarning
from scmbert_jax.training import trackers
from scmbert_jax.training.trackers import Tracker, check_trackers

FIELDS = {"seed": 0, "train.row_widths": [8, 16]}


class FakeService:
    """What a service knows of a run, with the packages `wandb` and `mlflow` in front of it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.opened: list[str] = []
        self.ended: list[str] = []
        self.params: dict[str, Any] = {}
        self.project = self.name = ""
        self.failures: list[Exception] = []  # raised by the next calls, one each

    def take(self, step: int, values: dict[str, float]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.rows.append((step, values))

    # wandb
    def init(self, *, project: str, name: str, id: str, resume: str, config: dict, **_: Any) -> Any:
        assert resume == "allow"
        self.opened.append(id)
        self.project, self.name, self.params = project, name, config
        return SimpleNamespace(
            define_metric=lambda *_, **__: None,
            log=lambda row: self.take(row["step"], {k: v for k, v in row.items() if k != "step"}),
            finish=lambda exit_code: self.ended.append("KILLED" if exit_code else "FINISHED"),
            offline=False,
            url="https://me:hunter22@host/run",
        )

    # mlflow
    def create_run(self, experiment_id: str, run_name: str) -> Any:
        self.opened.append("r1")
        self.project, self.name = experiment_id, run_name
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run_id: str, status: str) -> None:
        assert status == "RUNNING"
        self.opened.append(run_id)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return name

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.params |= {name: json.loads(value) for name, value in params}
        if metrics:
            (step,) = {step for _, _, _, step in metrics}
            self.take(step, {name: value for name, value, _, _ in metrics})

    def set_terminated(self, run_id: str, status: str) -> None:
        self.ended.append(status)


@pytest.fixture
def service(monkeypatch) -> FakeService:
    fake = FakeService()
    for variable in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    entities = {"Metric": lambda *values: values, "Param": lambda *values: values}
    parts = {"wandb": {"init": fake.init, "Settings": dict}, "mlflow": {"MlflowClient": lambda: fake}}
    for name, content in {**parts, "mlflow.entities": entities}.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trackers, "_SECONDS_BETWEEN_TRIES", 0.0)
    return fake


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "lift": None, **more}


def send(name: str, run_dir: Path, rows: list[dict], earlier: list[dict] = (), num_steps: int = 4) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(name, run_dir, FIELDS, num_steps, earlier)
    for one in rows:
        tracker.write(one)
    tracker.close()


VALIDATION = {"step": 2, "validation/loss/nll": 3.0}
ALL = [row(1), row(2), VALIDATION, row(3), row(4)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_that_continues_is_one_run_there_and_sends_no_row_twice(name, service, tmp_path, capsys):
    run_dir = tmp_path / "runs" / "blood 1"
    send(name, run_dir, ALL[:4])  # killed later on: its newest checkpoint is of step 1
    send(name, run_dir, ALL[1:], earlier=ALL[:1])
    assert service.rows == [(one["step"], {k: v for k, v in one.items() if k not in ("step", "lift")}) for one in ALL]
    assert len(set(service.opened)) == 1
    assert len(service.opened) == 2
    assert service.ended == ["KILLED", "FINISHED"]
    assert (service.project, service.name, service.params) == ("runs", "blood_1", FIELDS)
    assert "hunter22" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_that_is_sent_later_on_sends_its_earlier_rows_first(name, service, tmp_path):
    send(name, tmp_path, ALL[3:], earlier=ALL[:3])
    assert [step for step, _ in service.rows] == [1, 2, 2, 3, 4]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_away_is_told_once_without_its_key_and_gets_its_rows_later(
    name, service, tmp_path, monkeypatch
):
    monkeypatch.setenv("SERVICE_API_KEY", "abc123xyz")
    service.failures = [ConnectionError("no answer to https://u:pw9@host?key=abc123xyz\nmore"), OSError("abc123xyz")]
    with pytest.warns(ScmbertWarning, match="ConnectionError: no answer to") as told:
        send(name, tmp_path, ALL)
    assert len(told) == 1
    assert not any(secret in str(told[0].message) for secret in ("abc123xyz", "pw9", "more"))
    assert [step for step, _ in service.rows] == [1, 2, 2, 3, 4]


def test_what_a_service_never_took_is_sent_by_the_next_start(service, tmp_path):
    service.failures = [OSError("away")] * 9
    with pytest.warns(ScmbertWarning, match="OSError: away"):
        send("wandb", tmp_path, ALL[:2])
    assert service.rows == []
    service.failures = []
    send("wandb", tmp_path, ALL[2:], earlier=ALL[:2])
    assert [step for step, _ in service.rows] == [1, 2, 2, 3, 4]


def test_a_service_that_hangs_keeps_a_run_from_ending_for_a_minute_at_most(service, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_SECONDS_TO_FINISH", 0.05)
    released = trackers.threading.Event()
    service.take = lambda step, values: released.wait(30)
    with pytest.warns(ScmbertWarning, match="no answer for"):
        send("mlflow", tmp_path, ALL)
    released.set()


def test_a_note_of_what_was_sent_that_cannot_be_read_sends_nothing(service, tmp_path):
    send("mlflow", tmp_path, ALL[:2])
    (tmp_path / "trackers" / "mlflow.json").write_text("{")
    with pytest.warns(ScmbertWarning, match=r"mlflow\.json cannot be read, .*delete it"):
        send("mlflow", tmp_path, ALL[2:], earlier=ALL[:2])
    assert len(service.rows) == 2


def test_a_service_that_there_is_not_or_that_is_not_installed_is_refused_with_the_extra(service, monkeypatch):
    check_trackers(["wandb", "mlflow"])
    with pytest.raises(ConfigError, match="--log-to slack: expected wandb or mlflow"):
        check_trackers(["slack"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'scmbert_jax\[wandb\]'"):
        check_trackers(["wandb"])
