"""Which ends of a run are followed by another attempt."""

import sys

import pytest

from rlft.supervise import supervise

KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def attempts(tmp_path, *programs, retries=3):
    """Runs `programs` in turn, the last one for ever; returns (exit code, attempts made, messages)."""
    made, said = [], []

    def command(attempt):
        made.append(attempt)
        return [sys.executable, "-c", programs[min(attempt, len(programs) - 1)]]

    return supervise(command, tmp_path, retries, said.append), len(made), said


@pytest.mark.parametrize("code", [0, 2, 3, 130, 143])
def test_what_has_said_what_it_had_to_say_is_not_started_again(tmp_path, code):
    assert attempts(tmp_path, f"raise SystemExit({code})") == (code, 1, [])


def test_what_was_killed_is_started_again_until_the_retries_are_used_up(tmp_path):
    code, made, said = attempts(tmp_path, KILLED, KILLED, "")
    assert (code, made) == (0, 3)
    assert "was killed (SIGKILL) after step 0; starting it again (1 of 3 retries)" in said[0]
    code, made, said = attempts(tmp_path, KILLED, retries=1)
    assert (code, made) == (137, 2) and "1 retry used up" in said[-1]


def test_what_breaks_twice_at_one_step_is_left(tmp_path):
    code, made, said = attempts(tmp_path, "raise SystemExit(1)")
    assert (code, made) == (1, 2) and "broke twice after step 0" in said[-1]
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    further = f"open({str(tmp_path / 'metrics.jsonl')!r}, 'a').write('{{\"step\": 1}}\\n'); exit(1)"
    code, made, _ = attempts(tmp_path, "raise SystemExit(1)", further, further)
    assert (code, made) == (1, 3), "the second attempt came further"
