"""Bundles: everything that the learning part of one step starts from, and what came of it.

bundles/step_000003/
    bundle.json      step, version, where the start model is, and the recorded numbers
    config.yaml      the configuration, its plug-ins by name
    learning.pkl     the groups with their rows, and the algorithm's state
    learner_state/   weights, optimizer and random state before the step
    model/           the same weights as a Hugging Face folder

`rlft.replay` runs it again. A bundle is written beside its place and renamed once it is whole.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.cluster.fleet import Fleet
from rlft.cluster.waits import fetch
from rlft.config import Config
from rlft.errors import CheckpointError
from rlft.filters import members_of
from rlft.types import Group, Row, RowRef

_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle, read. groups: their members' rows are `rows[member.row.index]`; recorded: the numbers
    of the step; digest: of the weights after it; threads: of a learner rank; start: the folder of the
    model that the run started from; taken: optimizer steps of the run before."""

    folder: Path
    step: int
    version: int
    start: Path
    groups: list[Group]
    rows: list[Row]
    state: Any
    recorded: Mapping[str, Any]
    digest: str
    threads: int
    taken: int = 0


class Bundles:
    """Writes the bundles that `record.bundles` and `record.bundle_every` ask for."""

    def __init__(self, cfg: Config, folder: Path, start: Path, fleet: Fleet) -> None:
        self._cfg, self._run_folder, self._start, self._fleet = cfg, folder, start, fleet
        self._beside: Path | None = None
        self._facts: dict[str, Any] = {}

    def begin(
        self, step: int, version: int, groups: Sequence[Group], state: Any, taken: int = 0
    ) -> None:
        """Before step `step` learns: keeps what it starts from, if that step is asked for."""
        record = self._cfg.record
        if step not in record.bundles and not (
            record.bundle_every and step % record.bundle_every == 0
        ):
            return
        import ray.cloudpickle

        beside = self._run_folder / "bundles" / f".writing_step_{step:06d}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        self._all("save", beside)
        rows, numbered = self._rows(groups)
        whole = {"groups": numbered, "rows": rows, "state": state}
        (beside / "learning.pkl").write_bytes(ray.cloudpickle.dumps(whole))
        shutil.copyfile(self._run_folder / "config.yaml", beside / "config.yaml")
        self._facts = {"format": _FORMAT, "step": step, "version": version, "taken": taken}
        self._beside = beside

    def finish(self, row: Mapping[str, Any]) -> None:
        """After the step: adds what came of it. `row`: the step's row of `metrics.jsonl`."""
        if self._beside is None:
            return
        [digest, *_] = self._all("digest")
        numbers = {k: v for k, v in row.items() if not k.startswith("time/")}
        facts = {
            **self._facts,
            "start": str(self._start),
            "threads": digest["threads"],
            "weights": digest["weights"],
            "recorded": numbers,
        }
        (self._beside / "bundle.json").write_text(json.dumps(facts, indent=1) + "\n")
        final = self._beside.with_name(self._beside.name.removeprefix(".writing_"))
        shutil.rmtree(final, ignore_errors=True)  # of a run that is resumed from before this step
        self._beside.rename(final)
        self._beside = None

    def _all(self, method: str, *args: Any) -> list[Any]:
        limit = self._cfg.deadlines.save
        return self._fleet.all(self._fleet.learners, method, *args, what="bundle", deadline_s=limit)

    def _rows(self, groups: Sequence[Group]) -> tuple[list[Row], list[Group]]:
        """Every member's row in order, and the groups with references into that list."""
        members, _ = members_of(groups)
        refs = list(dict.fromkeys(m.row.ref for m in members))
        stored = fetch(refs, self._cfg.deadlines.learn, "rows of the bundle")
        held = dict(zip(refs, stored, strict=True))
        rows = [held[m.row.ref][m.row.index] for m in members]
        places = iter(range(len(rows)))
        numbered = [
            dataclasses.replace(
                g,
                members=tuple(
                    dataclasses.replace(m, row=RowRef(None, next(places))) for m in g.members
                ),
            )
            for g in groups
        ]
        return rows, numbered


def read_bundle(folder: Path) -> Bundle:
    """Raises CheckpointError: not a bundle, or of another format. Reads with pickle."""
    import ray.cloudpickle

    path = folder / "bundle.json"
    try:
        facts = json.loads(path.read_text())
        if facts["format"] != _FORMAT:
            raise CheckpointError(f"{folder} has format {facts['format']}, expected {_FORMAT}")
        whole = ray.cloudpickle.loads((folder / "learning.pkl").read_bytes())
        return Bundle(
            folder=folder,
            step=facts["step"],
            version=facts["version"],
            start=Path(facts["start"]),
            groups=whole["groups"],
            rows=whole["rows"],
            state=whole["state"],
            recorded=facts["recorded"],
            digest=facts["weights"],
            threads=facts["threads"],
            taken=facts.get("taken", 0),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder} is not a bundle: {path.name} is missing or unreadable ({error}). Bundles are "
            f"below <run folder>/bundles, if record.bundles names steps"
        ) from None
