"""The command `rlft merge`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from rlft.errors import ConfigError

_SETTING = re.compile(r"^([a-z_]\w*)=(.*)$", re.DOTALL)


def merge(
    method: Annotated[str, typer.Argument(help="wise_ft, lines, ... (see `rlft list`)")],
    what: Annotated[
        list[str],
        typer.Argument(help="models, and settings of the method as key=value"),
    ],
    out: Annotated[Path, typer.Option(help="the new Hugging Face folder")],
    base: Annotated[str | None, typer.Option(help="what the models were fine-tuned from")] = None,
    onto: Annotated[str | None, typer.Option(help="of transfer: the new base")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; default: the model's own")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="first:last:step of the mixing weight; then --out is a folder of models"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="of a sweep: what was learnt; a YAML file (its held-out reward), a .txt "
            "file (its log-likelihood), or a function of the folder as file.py:attr"
        ),
    ] = None,
    retention: Annotated[
        str | None, typer.Option(help="of a sweep: what is to be kept, in the same ways")
    ] = None,
    samples: Annotated[int, typer.Option(help="of a sweep: answers to each task; 0: greedy")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="of a sweep: keep every model")] = False,
) -> None:
    """Mix the weights of trained models into a new one, one tensor in memory at a time."""
    from rlft.merging.merge import merge as merged
    from rlft.merging.merge import recipe

    settings, models = _told_apart(what)
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ConfigError(f"--dtype {dtype}: expected float32, bfloat16 or float16")
    spec = {"name": method, **settings}
    if sweep is None:
        if target or retention:
            raise ConfigError("--target and --retention score a sweep; give --sweep 0:1:0.1")
        made = recipe(spec, models, base=base, onto=onto)
        print(f"merged: {merged(made, out.expanduser(), dtype)}")
        return
    from rlft.merging.sweep import points_of, swept

    if target is None or retention is None:
        raise ConfigError("--sweep needs --target and --retention, which score each model")
    values = points_of(sweep)
    for line in swept(
        spec,
        models,
        {"base": base, "onto": onto},
        values,
        out.expanduser(),
        (target, retention),
        dtype=dtype,
        samples=samples,
        keep=keep,
        say=print,
    ):
        print(line)


def _told_apart(what: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings and models of the arguments. A path with a `=` in it can be given as ./path."""
    found = [(_SETTING.match(word), word) for word in what]
    settings = {m[1]: yaml.safe_load(m[2]) for m, _ in found if m}
    return settings, [word for m, word in found if not m]
