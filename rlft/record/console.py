"""What a person sees while a run goes on: the plan, one line a step, and a live line in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text as RichText

_QUIET_S = 2.0
"""Steps faster than this share a line: 600 steps of 80 ms are 25 lines, not 600."""


class Console:
    """Lines that stay, and in a terminal one below them that lives."""

    def __init__(self, steps: int) -> None:
        self._rich = RichConsole(soft_wrap=True, highlight=False, emoji=False)
        self._steps = steps
        self._live: Live | None = None
        self._first: tuple[float, float] | None = None  # share of the run that was done, and when
        self._done = 0.0
        self._last_line = 0.0

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._rich.print(line, markup=False)

    @contextmanager
    def live(self) -> Iterator[None]:
        """While inside, `phase` shows what is going on, if this is a terminal."""
        if not self._rich.is_terminal:
            yield
            return
        with Live(console=self._rich, transient=True, refresh_per_second=4) as self._live:
            try:
                yield
            finally:
                self._live = None

    def phase(self, name: str, step: int) -> None:
        """Names the phase of step `step` on the live line."""
        if self._live is not None:
            text = RichText(f" step {step}/{self._steps}  {name} ...  {self._eta()}")
            self._live.update(Spinner("dots", text))

    def step(self, row: Mapping[str, float], spent: float = 0.0) -> None:
        """Prints the line of a finished step. spent: the share of a budget, which may end the run first."""
        done = int(row["step"])
        self._done = max(done / self._steps, spent)
        if self._first is None:
            self._first = (self._done, time.monotonic())
        if time.monotonic() - self._last_line < _QUIET_S and self._done < 1:
            return
        self._last_line = time.monotonic()
        pace, unit = row["tokens/prompt"] + row["tokens/completion"], "tokens"
        if "env/steps" in row:
            unit = "env steps"
        elif pace == 0:  # steps of demonstrations: nothing was read or written
            pace, unit = row["tokens/trained"], "steps"
        shown = [p for p in ("rollout", "learn", "publish") if row[f"time/{p}_s"] > 0]
        phases = "  ".join(f"{p} {row[f'time/{p}_s']:.1f} s" for p in shown)
        reward = row.get("reward/mean")
        parts = [
            f"step {done}/{self._steps}",
            f"reward {reward:.3f}" if reward is not None else _losses(row),
            f"{pace / max(row['time/step_s'], 1e-9):,.0f} {unit}/s",
            phases,
            self._eta(),
        ]
        self.say("  ".join(p for p in parts if p))

    def _eta(self) -> str:
        if self._first is None or self._done <= self._first[0]:
            return ""
        whole = (time.monotonic() - self._first[1]) / (self._done - self._first[0])
        minutes, seconds = divmod(round(whole * (1 - self._done)), 60)
        return f"ETA {minutes}:{seconds:02d}"


def _losses(row: Mapping[str, float]) -> str:
    """The losses of a step without rewards."""
    found = {k.removeprefix("loss/"): v for k, v in row.items() if k.startswith("loss/")}
    return "  ".join(f"{name} {value:.3f}" for name, value in found.items())
