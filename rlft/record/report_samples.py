"""The part of the report that shows completions. Everything a model or a data set said is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]

_STEPS = 6
"""Steps of which completions are shown: the first, the last, and some between."""

_LONGEST = 6000
"""Characters shown of a text."""

_GAPS = (0.01, 0.05, 0.2, 0.5)
"""Nats from which a token's gap gets the next colour."""


def chosen_steps(steps: Sequence[int], most: int = _STEPS) -> list[int]:
    """The first and last of the sorted `steps`, and evenly spread ones between."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def samples_html(samples: Sequence[Row], tokens: Sequence[Row]) -> Iterator[str]:
    """Sections with the completions of some steps, the newest first and open."""
    traces = {(t["step"], t["id"]): t for t in tokens}
    for kind, title in (("train", "Answers of the step"), ("eval", "Held-out answers after step")):
        mine = [s for s in samples if s["kind"] == kind]
        for place, step in enumerate(reversed(chosen_steps(sorted({s["step"] for s in mine})))):
            rows = [s for s in mine if s["step"] == step]
            is_open = " open" if kind == "train" and place == 0 else ""
            yield f"<details{is_open}><summary>{title} {step} ({_rewards(rows)})</summary>"
            for task in dict.fromkeys(s["task"] for s in rows):
                answers = [s for s in rows if s["task"] == task]
                yield _task(answers, traces if kind == "train" else {})
            yield "</details>"


def _rewards(rows: Sequence[Row]) -> str:
    known = [r["reward"] for r in rows if r["reward"] is not None]
    if not known:
        return f"{len(rows)} shown"
    return f"{len(rows)} shown, rewards {min(known):.3g} to {max(known):.3g}"


def _task(answers: Sequence[Row], traces: Mapping[tuple[int, str], Row]) -> str:
    first = answers[0]
    target = first.get("target")
    wanted = f'<p class="note">target: {_text(target)}</p>' if target is not None else ""
    shown = "".join(_answer(a, traces.get((a["step"], a.get("id", "")))) for a in answers)
    head = f'<p class="note">task {_text(first["task"])}</p><pre>{_prompt(first["prompt"])}</pre>'
    return f'<div class="task">{head}{wanted}{shown}</div>'


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return _text(prompt)
    return "\n".join(
        f"<b>{_text(m.get('role', ''))}</b> {_text(m.get('content', ''))}" for m in prompt
    )


def _answer(row: Row, trace: Row | None) -> str:
    reason = f'<p class="note">{_text(row["reason"])}</p>' if row.get("reason") else ""
    text = _text(row["completion"]) or '<span class="soft">(empty)</span>'
    said = f"<pre>{text}</pre>" if not row.get("turns") else "".join(_turns(row["turns"]))
    detail = "".join(trace_html(trace)) if trace else ""
    badges = "".join(_badges(row))
    return f'<div class="answer"><div class="badges">{badges}</div>{said}{reason}{detail}</div>'


def _turns(turns: Sequence[str]) -> Iterator[str]:
    """What the policy wrote, and indented what the environment answered."""
    for index, turn in enumerate(turns):
        look = "turn theirs" if index % 2 else "turn"
        yield f'<div class="{look}">{_text(turn) or "(nothing)"}</div>'


def _badges(row: Row) -> Iterator[str]:
    if row["reward"] is not None:
        yield _badge(f"reward {row['reward']:.4g}", "reward")
    if row["outcome"] not in ("value", None):
        yield _badge(str(row["outcome"]), "bad")
    for name, value in row["parts"].items():
        yield _badge(f"{name} {value:.4g}" if isinstance(value, int | float) else f"{name} {value}")
    yield _badge(f"{row['tokens']} tokens")
    if row["truncated"]:
        yield _badge("cut off", "bad")
    oldest, newest = row["version"]
    if newest >= 0:
        span = f"{newest}" if oldest == newest else f"{oldest} to {newest}"
        yield _badge(f"weights {span}")


def _badge(text: str, look: str = "") -> str:
    return f'<span class="badge {look}">{escape(text)}</span>'


def trace_html(trace: Row) -> Iterator[str]:
    """A completion token by token, coloured by the gap between engine and learner."""
    engine, learner = trace["engine_logp"], trace["learner_logp"]
    gaps = [abs(a - b) for a, b in zip(engine, learner, strict=True)]
    if not gaps:
        return
    mean, worst = sum(gaps) / len(gaps), sorted(range(len(gaps)), key=lambda i: -gaps[i])[:5]
    yield (
        f"<details><summary>token by token: log-prob gap between engine and learner {mean:.2g} nats on "
        f'average, {max(gaps):.2g} at most</summary><div class="tokens">'
    )
    for token, a, b, gap in zip(trace["tokens"], engine, learner, gaps, strict=True):
        look = sum(gap >= edge for edge in _GAPS)
        # Spaces and line breaks are tokens too, and must be seen.
        shown = escape(token.replace("\n", "⏎\n")) or "∅"
        yield f'<span class="g{look}" title="engine {a:.4f}, learner {b:.4f}">{shown}</span>'
    edges = ", ".join(f'<span class="g{i}">≥ {edge:g}</span>' for i, edge in enumerate(_GAPS, 1))
    yield f'</div><p class="note">gap in nats: {edges}</p>'
    yield '<div class="scroll"><table><tr><th>widest gaps</th><th>engine</th><th>learner</th></tr>'
    for i in worst:
        token = escape(json.dumps(trace["tokens"][i], ensure_ascii=False))
        yield f"<tr><td>{token}</td><td>{engine[i]:.4f}</td><td>{learner[i]:.4f}</td></tr>"
    yield "</table></div></details>"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    cut = f"\n… ({len(text) - _LONGEST:,} more characters)" if len(text) > _LONGEST else ""
    return escape(text[:_LONGEST] + cut)
