"""The command ``invsolve``: run, list, show, check, show-operator, calibrate."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from invsolve import __version__
from invsolve.cli import calibrate, operators
from invsolve.cli.console import spoken
from invsolve.cli.listing import gathered, listing
from invsolve.config.names import GROUPS
from invsolve.engine.stopping import Stopped
from invsolve.errors import ConfigError

if TYPE_CHECKING:
    from invsolve.runs.outcome import RunResult

_EXAMPLES = """\
examples:
  invsolve run photo_inpaint                        a shipped preset, written to runs/photo_inpaint
  invsolve run photo_sr4 sampler.zeta=0.5 seed=1 out=runs/mine
                                                    the same with other values
  invsolve run photo_deblur data.root=my_photos data.indices=0-9
                                                    your own images: a file, a folder or a glob
  invsolve run photo_inpaint data.measurement=y.npz a stored measurement, without a truth
  invsolve run my.yaml sampler=unconditional        your own file; another sampler, chosen by name
  invsolve eval photo_inpaint data.root=my_photos trainer.devices=2 trainer.strategy=ddp
                                                    many images on many devices; data.shard=0/8 for a job array
  invsolve score runs/photo_inpaint                 tables of what was sampled; `compare RUN RUN` sets runs side by side
  invsolve report runs/photo_inpaint                a page of pictures, charts and tables: report.html in the folder
  invsolve list sampler                             the names of a group, each with a line of help
  invsolve show photo_inpaint operator=identity     the whole configuration, defaults included
  invsolve check operator=custom operator.target=mine.py:make
                                                    whether an operator, also one of yours, obeys the laws
  invsolve show-operator operator=inpainting image=photo.png out=look.png
                                                    what an operator does to a photograph, and back
  invsolve calibrate sampler=dps operator=inpainting
                                                    whether a sampler's error bars are right, and what is wrong

Running a command again continues it: finished images are skipped. score, compare, report and show only read, and execute nothing
that a folder names; run and eval, also of a stored FOLDER/config.yaml, execute the file of its custom operator.
"""

_RUN_HELP = """\
key=value changes the configuration: `sampler=unconditional` picks another component by name,
`sampler.zeta=0.5` sets one of its values. `invsolve show NAME` prints all keys.
"""


# Residuals in units of the noise beyond this are no rounding of a fit.
_MISFIT = 2.0


@spoken
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 1 (something failed while running), 2 (the request cannot be run).

    Or 128 + the number of the signal that stopped it: 130 after Ctrl-C, 143 after SIGTERM.
    """
    options = _parser().parse_args(arguments)
    try:
        return _dispatch(options)
    except ConfigError as error:
        if options.debug:
            raise
        print(f"invsolve: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, ArithmeticError, MemoryError) as error:
        if options.debug:
            raise
        text = " ".join(str(error).split())
        hint = "; less memory is needed with memory_gb=... or batch=1" if "out of memory" in text else ""
        print(f"invsolve: error: {type(error).__name__}: {text}{hint} (--debug shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("invsolve: interrupted; the same command goes on with what is not finished", file=sys.stderr)
        return 130
    except Stopped as stop:
        code = int(stop.code or 0)
        if code:
            with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal left to say it to
                print(f"invsolve: stopped by {stop.name}; the same command goes on with what is not finished", file=sys.stderr)
        return code


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="invsolve",
        description="Sample from the posterior of imaging inverse problems under a diffusion prior.",
        epilog=_EXAMPLES,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"invsolve {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the Python traceback of an error")
    names = "{run,eval,score,compare,report,list,show,check,show-operator,calibrate}"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    shown = (("run", "sample, and write a folder of results"), ("show", "print the resolved configuration"))
    for name, text in (*shown, ("eval", "as run, of many images on the devices that trainer.devices and trainer.num_nodes name")):
        command = commands.add_parser(name, help=text, description=text, epilog=_RUN_HELP, formatter_class=formatter)
        command.add_argument("name", help="a preset (see `invsolve list run`) or the path of a YAML file")
        if name == "show":
            trust = "execute the file of a custom operator, to know its keys, and look up ${...} in a config.yaml"
            command.add_argument("--trust", action="store_true", help=trust)
        # Everything that follows, so that the likes of -m and ~key reach the sentence that explains them.
        command.add_argument("overrides", nargs=argparse.REMAINDER, metavar="key=value", help="changes to the configuration")
    for name, text, epilog in (*operators.HELP, calibrate.HELP):
        command = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=formatter)
        if name != "check":
            written = "the picture" if name == "show-operator" else "the file of json=FILE"
            command.add_argument("--overwrite", action="store_true", help=f"replace {written} if it exists")
        command.add_argument("overrides", nargs=argparse.REMAINDER, metavar="key=value", help="what to look at")
    _add_scoring(commands)
    command = commands.add_parser("list", help="list what can be named", description="list what can be named")
    command.add_argument("group", nargs="?", help="prior, operator, noise, schedule, sampler, data or run; all without it")
    command.add_argument("--all", action="store_true", help="every name, also those of a family of settings")
    return parser


def _add_scoring(commands: Any) -> None:
    shown = (("score", "tables of a run from its stored arrays"), ("compare", "runs side by side, with paired differences"))
    for name, text in (*shown, ("report", "report.html of each run: pictures, charts and tables in one file")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("runs", nargs=1 if name == "score" else "+", metavar="RUN", help="the folder of a run")
        nets = ("auto", "alex", "vgg", "squeeze", "none")
        command.add_argument("--lpips", choices=nets, default="auto", help="backbone of LPIPS, from local weights; auto: one that is there")
        trust = "execute the code of a custom operator that the run names, which only reading it never does"
        command.add_argument("--trust", action="store_true", help=trust)
        if name == "score":
            text = "also FID and KID against the images of a folder, by Inception's local weights"
            command.add_argument("--fid", default=None, metavar="FOLDER", help=text)
        if name == "report":
            command.add_argument("--images", type=int, default=100, metavar="N", help="pictures of the first N images; -1: of all")
        if name == "compare":
            command.add_argument("--of", choices=("one", "mean", "best"), default="mean", help="one sample, the mean, or the best (oracle)")
            command.add_argument("--out", default=None, metavar="FILE", help="also write FILE.md, FILE.tex and FILE.csv")
            command.add_argument("--overwrite", action="store_true", help="replace the files of --out if they exist")


def _dispatch(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list(options.group, options.all)
    for flag in ("debug", "overwrite", "trust"):
        if hasattr(options, flag) and f"--{flag}" in getattr(options, "overrides", ()):
            setattr(options, flag, True)
            options.overrides.remove(f"--{flag}")
    if options.command == "check":
        return operators.check(options.overrides)
    if options.command == "show-operator":
        return operators.show(options.overrides, options.overwrite)
    if options.command == "calibrate":
        return calibrate.calibrate(options.overrides, options.overwrite)
    if options.command in ("score", "compare", "report"):
        return _tables(options)
    from invsolve.config.identity import show
    from invsolve.config.load import load

    config = load(options.name, options.overrides, trust=getattr(options, "trust", True))
    if options.command == "show":
        print(show(config), end="")
        return 0
    start = time.perf_counter()
    if options.command == "eval":
        from invsolve.runs.lightning import evaluate

        result = evaluate(config)
    else:
        from invsolve.runs.local import run

        result = run(config)
    if result.whole:
        _report(result, time.perf_counter() - start)
    # Rank 0 speaks for all: Lightning's launcher kills it as soon as another rank has failed.
    return 1 if result.failed and result.whole else 0


def _tables(options: argparse.Namespace) -> int:
    """Prints the tables of runs, and writes them; or writes their reports."""
    from invsolve.reports import compare, report, score
    from invsolve.reports.tables import refuse_existing

    if options.command == "report":
        for run in options.runs:
            print(report(run, options.lpips, options.images, options.trust))
        return 0
    if options.command == "score":
        print(score(options.runs[0], options.lpips, options.fid, trust=options.trust).markdown(), end="")
        return 0
    if options.out:
        refuse_existing(options.out, options.overwrite)
    table = compare(options.runs, options.of, options.lpips, options.trust)
    if options.out:
        table.write(options.out, options.overwrite)
    print(table.markdown(), end="")
    return 0


def _list(group: str | None, every: bool) -> int:
    """Prints the names of a group, or of all groups; then a family of settings is one line unless `every`."""
    pass

    # `invsolve list samplers` reads as naturally as `invsolve list sampler`.
    if group is not None and group not in GROUPS and group.removesuffix("s") in GROUPS:
        group = group.removesuffix("s")
    groups = GROUPS if group is None else (group,)
    for shown in groups:
        entries = listing(shown)
        if group is None and not every:
            entries = gathered(entries)
        print(f"{shown}:")
        width = max((len(name) for name, _ in entries), default=0)
        for name, text in entries:
            print(f"  {name:<{width}}  {text}".rstrip())
    return 0


def _report(result: RunResult, seconds: float) -> None:
    """A short table of averages over the images, the time, and where the pictures are."""
    from invsolve.runs.records import mean_of

    if result.rows:
        images = len({row.id for row in result.rows})
        print(f"\naverage over {images} image{'s' if images > 1 else ''}    one sample   posterior mean")
        for metric, label in (("residual", "residual / noise"), ("psnr", "PSNR [dB]"), ("ssim", "SSIM")):
            values = [mean_of(result.rows, metric, of_mean) for of_mean in (False, True)]
            if values[0] is not None:
                digits = 2 if metric != "ssim" else 3
                print(f"  {label:<20}" + "".join(f"{value:>14.{digits}f}" for value in values if value is not None))
        misfit = mean_of(result.rows, "residual", False)
        if misfit is not None and misfit > _MISFIT:
            print(
                f"the samples do not fit y (residual / noise {misfit:.1f}, about 1 is expected): more steps or stronger guidance may help"
            )
    if result.sampled:
        calls = (result.calls or {}).get("forward", 0)
        each = f", {calls} network calls, {1000 * result.seconds / calls:.1f} ms per call" if calls else ""
        print(f"\nsampled {len(result.sampled)} in {result.seconds:.1f} s{each}; {seconds:.1f} s in all")
    for id, message in result.failed.items():
        print(f"invsolve: failed: {id}: {message}", file=sys.stderr)
    shown = [*result.sampled, *result.skipped]
    if shown:
        print(f"results:  {result.out}\npictures: {result.out / 'images' / shown[0] / 'panel.png'}")
        for id in shown[1:4]:
            print(f"          {result.out / 'images' / id / 'panel.png'}")
        if len(shown) > 4:
            print(f"          and {len(shown) - 4} more")


if __name__ == "__main__":
    sys.exit(main())
