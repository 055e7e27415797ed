"""A reward of the whole conversation: its first parameter is called `trajectory`."""


def polite(trajectory, task) -> dict[str, float]:
    """Half a point if no answer is longer than the question, half for an answer that was not cut off."""
    asked = [m["content"] for m in trajectory.messages if m["role"] == "user"]
    said = [m["content"] for m in trajectory.messages if m["role"] == "assistant"]
    short = max(map(len, said)) <= max(map(len, asked), default=0)
    return {"short": 0.5 * short, "whole": 0.5 * (not trajectory.truncated)}
