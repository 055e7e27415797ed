"""A reward for MATH: the last `\\boxed{...}` against the row's answer, as text."""

import rlft


def boxed(completion: str, task) -> float:
    """1 if they are equal but for spaces, `$`, `\\left`, `\\right`, `\\dfrac` and a full stop.

    Two ways to write one number (`1/2`, `0.5`) differ: for that take a library such as math-verify.
    Raises Invalid: there is no box, or it does not close.
    """
    start = completion.rfind("\\boxed{")
    if start < 0:
        raise rlft.Invalid("no \\boxed{...}")
    depth = 0
    for place in range(start + len("\\boxed"), len(completion)):
        depth += {"{": 1, "}": -1}.get(completion[place], 0)
        if depth == 0:
            inside = completion[start + len("\\boxed{") : place]
            return float(plain(inside) == plain(str(task.target)))
    raise rlft.Invalid("\\boxed{ does not close")


def plain(text: str) -> str:
    """The text without what does not change its meaning."""
    for gone in (" ", "$", "\\left", "\\right", "\\,", "\\!"):
        text = text.replace(gone, "")
    return text.replace("\\dfrac", "\\frac").rstrip(".")
