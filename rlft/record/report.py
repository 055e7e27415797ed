"""`report.html`: a run on one page that opens offline, in one file, and asks nobody for anything.

plotly draws the curves (hover, zoom); its script lies in the page. Model output is escaped, and a content
security policy lets only this page's own two scripts run, by their hash, and nothing be fetched: what
a model writes stays text even where an escape was forgotten.
"""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from rlft.errors import ConfigError
from rlft.record.charts import Chart, charts
from rlft.record.forgetting import forgetting_html, probe_charts
from rlft.record.metrics import JsonLines
from rlft.record.report_acting import films_html, maps
from rlft.record.report_samples import samples_html
from rlft.record.summary import success

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What the run folder holds now. result: None until the run is done; age_s: since the last row."""

    folder: Path
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    tokens: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    scratch: list[dict[str, Any]] | None
    result: Mapping[str, Any] | None
    age_s: float | None


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder, finished or not; returns its path.

    Raises ConfigError if it is not a run folder.
    """
    path = folder / "report.html"
    beside = folder / ".report.html"
    beside.write_text(page(read_run(folder)), "utf-8")
    beside.replace(path)
    return path


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder, also while the run writes to it. Raises ConfigError if it is none."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} is not a run folder: it has no config.yaml. Run folders are below runs/NAME/, "
            f"and `rlft run` prints theirs"
        )
    text = (folder / "config.yaml").read_text("utf-8")
    lines = {
        name: JsonLines(folder / f"{name}.jsonl").rows()
        for name in ("metrics", "eval", "samples", "tokens", "alerts", "probes")
    }
    environment, result = folder / "environment.json", folder / "result.json"
    written = folder / "metrics.jsonl"
    config = yaml.safe_load(text)
    scratch = _scratch_of(config)
    return RunFiles(
        folder=folder,
        config=config,
        config_text=text,
        environment=json.loads(environment.read_text()) if environment.is_file() else {},
        metrics=lines["metrics"],
        evals=lines["eval"],
        samples=lines["samples"],
        tokens=lines["tokens"],
        alerts=lines["alerts"],
        probes=lines["probes"],
        scratch=None if scratch is None else JsonLines(scratch / "probes.jsonl").rows(),
        result=json.loads(result.read_text()) if result.is_file() else None,
        age_s=time.time() - written.stat().st_mtime if written.is_file() else None,
    )


def _scratch_of(config: Mapping[str, Any]) -> Path | None:
    """The run from nothing that `probes.scratch` names."""
    named = (config.get("probes") or {}).get("scratch")
    return None if named is None else Path(named).expanduser()


def page(run: RunFiles) -> str:
    """The whole page."""
    parts = {part for s in run.samples for part in s["parts"]}
    drawn = charts(run.metrics, run.evals, parts)
    drawn[2:2] = maps(run.samples)  # behind the reward, in training and held out
    drawn += probe_charts(run.probes)
    after = [
        *forgetting_html(run.probes, run.scratch, _scratch_of(run.config)),
        "<h2>Completions</h2>" if run.samples else "",
        *samples_html(run.samples, run.tokens),
        *_details(run),
    ]
    head = [*_head(run), *_alerts(run.alerts), *films_html(run.folder)]
    return html_page(str(run.config["name"]), head, drawn, after)


def html_page(
    title: str, body: Iterable[str], drawn: Sequence[Chart], after: Iterable[str] = ()
) -> str:
    """A page of its own: HTML before and after the charts; title: text, not HTML."""
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
    here = files("rlft.record")
    css = (here / "report.css").read_text("utf-8")
    script = (here / "report.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {_allowed(plotly)} {_allowed(script)}; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps([{"traces": c.traces, "layout": c.layout} for c in drawn])
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{css}</style></head><body><main>",
            *body,
            *_charts(drawn),
            *after,
            "</main>",
            # `<` would let a text of the data end the element.
            f'<script type="application/json" id="charts">{data.replace("<", _LESS)}</script>',
            f"<script>{plotly}</script><script>{script}</script></body></html>\n",
        ]
    )


_LESS = "\\u003c"


def _allowed(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _head(run: RunFiles) -> Iterator[str]:
    kind, status = _status(run)
    algo, env = (_name(run.config[k]) for k in ("algo", "env"))
    yield f'<h1>{escape(str(run.config["name"]))} <span class="pill {kind}">{kind}</span></h1>'
    yield f'<p class="soft">{escape(algo)} on {escape(env)}, seed {run.config["seed"]}. {status}</p>'
    figures = "".join(
        f'<div class="figure"><span>{escape(what)}</span><b>{escape(value)}</b></div>'
        for what, value in _figures(run)
    )
    yield f'<div class="figures">{figures}</div>'


def _status(run: RunFiles) -> tuple[str, str]:
    """(finished, ended or running; a sentence)."""
    done = run.metrics[-1]["step"] if run.metrics else 0
    ended = [a for a in run.alerts if a["kind"] == "end"]
    written = f"Written {time.strftime('%Y-%m-%d %H:%M:%S')}."
    if ended:
        return "ended", f"It ended early, after step {done}. {written}"
    if run.result is not None and run.result.get("step") == done:
        return "finished", written
    if run.age_s is None:
        return "running", f"No step is finished yet. {written}"
    return "running", f"Its last step ended {_span(run.age_s)} before this page. {written}"


def _figures(run: RunFiles) -> Iterator[tuple[str, str]]:
    rows, steps = run.metrics, run.config["steps"]
    yield "steps", f"{rows[-1]['step'] if rows else 0} of {steps}"
    shown = next((k for k in ("reward/mean", "loss/nll") if rows and k in rows[0]), None)
    if shown:
        known = [r[shown] for r in rows if r.get(shown) is not None]
        few = max(1, min(5, len(known) // 2))
        if len(known) == 1:
            yield shown, f"{known[0]:.3g}"
        elif known:
            first, last = statistics.fmean(known[:few]), statistics.fmean(known[-few:])
            yield f"{shown}, first to last steps", f"{first:.3g} → {last:.3g}"
    if run.evals:
        before, after = success(run.evals[0]), success(run.evals[-1])
        for name, value in list(after.items())[:2]:
            arrow = f"{before[name]:.3g} → " if len(run.evals) > 1 and name in before else ""
            yield f"held-out {name}", f"{arrow}{value:.3g}"
    seconds = sum(r.get("time/step_s") or 0 for r in rows)
    seconds += sum(r.get("time/eval_s") or 0 for r in run.evals)
    if rows:
        yield "steps and evaluations took", _span(seconds)


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s"


def _name(plugin: Any) -> str:
    return str(plugin["name"] if isinstance(plugin, Mapping) else plugin)


def _alerts(alerts: Sequence[Row]) -> Iterator[str]:
    if not alerts:
        return
    yield '<h2>Alerts</h2><ul class="alerts">'
    for alert in alerts:
        look = "stop" if alert.get("stop") else escape(str(alert["kind"]))
        yield f'<li class="{look}"><b>step {alert["step"]}</b> {escape(str(alert["message"]))}</li>'
    yield "</ul>"


def _charts(drawn: Sequence[Chart]) -> Iterator[str]:
    if not drawn:
        yield '<p class="note">There is nothing to draw before the first step has ended.</p>'
        return
    yield '<h2>Curves</h2><div class="charts">'
    for index, chart in enumerate(drawn):
        wide = " wide" if chart.wide else ""
        note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
        yield f'<section class="chart{wide}"><h3>{escape(chart.title)}</h3>{note}'
        yield f'<div class="plot" id="plot-{index}"></div></section>'
    yield "</div>"


def _details(run: RunFiles) -> Iterator[str]:
    yield "<h2>What ran</h2>"
    yield f"<details><summary>Configuration</summary><pre>{escape(run.config_text)}</pre></details>"
    text = json.dumps(run.environment, indent=1)
    yield f"<details><summary>Versions</summary><pre>{escape(text)}</pre></details>"
    yield f'<p class="note">{escape(str(run.folder))}</p>'
