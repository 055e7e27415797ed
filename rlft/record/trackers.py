"""The three trackers. Each imports its package when it opens, on its own thread."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlft.config import Config


class TensorBoard:
    """Event files in `<run folder>/tensorboard`."""

    def __init__(self, cfg: Config, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def open(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: a resumed run takes the steps after its checkpoint again.
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step)

    def log(self, row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, ok: bool) -> None:
        self._writer.close()


class WandbRun:
    """A run on Weights & Biases; a resumed run continues the same one.

    Steps are a metric of their own: W&B drops what is logged under a step that it has seen, and a
    resumed run takes some steps again.
    """

    def __init__(self, cfg: Config, folder: Path) -> None:
        assert cfg.record.wandb is not None
        self._settings, self._folder = cfg.record.wandb, folder
        self._config = cfg.model_dump(mode="json")
        self._run: Any = None

    def open(self, first_step: int) -> None:
        import wandb

        known = remembered(self._folder, "wandb")
        self._run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            name=self._settings.name or self._folder.name,
            group=self._settings.group,
            tags=self._settings.tags,
            mode=self._settings.mode,
            dir=str(self._folder),
            config=self._config,
            id=known,
            resume="allow" if known else None,
            # Nothing of its own on the console, and no questions asked there.
            settings=wandb.Settings(silent=True, console="off", login_timeout=1),
        )
        remember(self._folder, "wandb", self._run.id)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._run.log({**row, "step": step})

    def close(self, ok: bool) -> None:
        self._run.finish(exit_code=0 if ok else 1)


class MlflowRun:
    """A run of an MLflow experiment; a resumed run continues the same one."""

    def __init__(self, cfg: Config, folder: Path) -> None:
        assert cfg.record.mlflow is not None
        self._settings, self._folder = cfg.record.mlflow, folder
        self._params = flat(cfg.model_dump(mode="json"))
        self._client: Any = None
        self._id = ""

    def open(self, first_step: int) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._settings.tracking_uri)
        known = remembered(self._folder, "mlflow")
        if known is not None:
            self._id = known
            self._client.update_run(self._id, status="RUNNING")
            return
        name = self._settings.experiment
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run_name = self._settings.name or self._folder.name
        self._id = self._client.create_run(experiment, run_name=run_name).info.run_id
        remember(self._folder, "mlflow", self._id)
        for key, value in self._params.items():
            self._client.log_param(self._id, key, value)

    def log(self, row: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, step) for name, value in row.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, ok: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if ok else "FAILED")


def _allowed(name: str) -> str:
    """A metric's name with what MLflow refuses in names replaced by `_`."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values as text, at most 500 characters each, as MLflow wants parameters."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = str(value)[:500]
    return out


def remember(folder: Path, name: str, run_id: str) -> None:
    """Keeps a tracker's own name of this run in `trackers/NAME.json`."""
    path = folder / "trackers" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"id": run_id}) + "\n")


def remembered(folder: Path, name: str) -> str | None:
    """What `remember` kept, or None."""
    path = folder / "trackers" / f"{name}.json"
    return json.loads(path.read_text())["id"] if path.is_file() else None
