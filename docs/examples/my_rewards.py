"""Rewards of your own: functions of a completion and its task."""

from rlft import Invalid


def brevity(completion: str, task, limit: int = 12) -> dict[str, float]:
    """1 for a right result, less a tenth for each character beyond `limit`."""
    if "=" not in completion:
        raise Invalid("no result")
    right = float(completion.rpartition("=")[2] == task.target)
    excess = max(0, len(completion) - limit)
    return {"reward": right - 0.1 * excess, "right": right, "excess": float(excess)}
