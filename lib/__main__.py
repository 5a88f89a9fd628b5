"""Command line of the study: `python -m lib --help`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # until `main` has read its arguments, Ctrl-C ends this without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from . import params as parameters
from .pipeline import resolve, runner

#: What `python -m lib VERB --help` ends with.
EXAMPLES = {
    "run": "train dagl_gray_denoise_25",
    "repro": "--profile cpu --study across_systems --jobs 2",
    "compare": "HEAD~1",
    "search": "--profile cpu",
    "verdicts": "--profile cpu --seeds 10",
    "list": "across_systems",
    "new": "dagl_gray_denoise_25-3_heads --from dagl_gray_denoise_25 --set heads=3 --study dagl_structure",
    "keep": "panet_gray_denoise_25-common_trunk --profile cpu",
    "pull": "--profile cpu",
    "restore": "scans/*.png --by panet_gray_denoise_25-common_trunk --into restored --profile cpu",
}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        if 0 < float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _path(text: str) -> Path:
    if not text:  # else the working folder
        raise argparse.ArgumentTypeError("'' names no file or folder")
    return Path(text)


def _address(text: str) -> str:
    if text != "auto" and not re.fullmatch(r"[^/]+:\d{1,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither `auto`, this machine, nor HOST:PORT, a cluster's head")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check", help="check params.yaml: names, options, types")
    verbs.add_parser("schema", help="write params.schema.json, by which editors complete params.yaml")
    verbs.add_parser("resolve", help="check it and write what each stage is given (called by DVC)")
    verb = verbs.add_parser("run", help="execute one stage's notebook (called by DVC)")
    verb.add_argument("stage", nargs="?", choices=runner.STAGES, help="default: the one in which DVC calls this")
    verb.add_argument("key", nargs="?", help="experiment or study")
    verb = verbs.add_parser("repro", help="bring every result of a profile up to date (make repro)")
    verb.add_argument("--study", help="only this study and what it needs")
    verb.add_argument("--jobs", type=_count, help="experiments at a time (default: one per core)")
    verb.add_argument(
        "--cluster", type=_address, metavar="auto|HOST:PORT", help="run rows by Ray, here or on a cluster"
    )
    verb = verbs.add_parser("compare", help="list how results differ from the committed ones, in dB")
    verb.add_argument("revision", nargs="?", default="HEAD")
    verbs.add_parser("search", help="search the learning rates of a profile anew, where its `recipe_search` is")
    verb = verbs.add_parser("verdicts", help="print every claim with its verdict, and what would resolve it")
    verb.add_argument("--seeds", type=_count, metavar="N", help="plan which rows to train, up to N seeds each")
    verb = verbs.add_parser("list", help="list studies and their rows, and what is up to date")
    verb.add_argument("study", nargs="?", help="only this one")
    verb = verbs.add_parser("new", help="write an experiment like another one into params.yaml")
    verb.add_argument("experiment", help="its name, <model>_<task>-<difference>")
    verb.add_argument("--from", dest="other", required=True, metavar="OTHER", help="the experiment it is like")
    verb.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="OPTION=VALUE", help="in what it differs"
    )
    verb.add_argument("--study", help="the study that lists it")
    verb.add_argument("--title", help="its name in tables and figures")
    verb = verbs.add_parser("keep", help="have git hold trained networks, in place of those it held")
    verb.add_argument("experiments", nargs="+")
    verb = verbs.add_parser("pull", help="bring the networks that git holds, so that nothing has to be trained")
    verb.add_argument("experiments", nargs="*", help="only these")
    verb = verbs.add_parser("restore", help="restore image files by a trained network or a baseline")
    verb.add_argument("images", nargs="+", type=_path, metavar="IMAGE", help="files, folders or patterns")
    verb.add_argument("--by", required=True, metavar="EXPERIMENT")
    verb.add_argument("--into", type=_path, required=True, metavar="FILE.png", help="or a folder, for several")
    verb.add_argument("--megapixels", type=_positive, default=100, help="of the largest image that is taken (100)")
    verb.add_argument("--self-ensemble", action="store_true", help="the mean over eight flips and rotations")
    for name in ("repro", "keep", "pull"):
        verbs.choices[name].add_argument("--profile", help="switch to this profile first")
    for name in ("search", "verdicts", "list", "restore"):
        verbs.choices[name].add_argument("--profile", help="of this profile (default: the one in force)")
    for name, verb in verbs.choices.items():
        verb.epilog = f"example: python -m lib {name} {EXAMPLES.get(name, '')}"
    return parser


def _run(given: argparse.Namespace) -> int | None:
    """Do what was asked for; each verb imports what it alone needs. Returns an exit status, None for 0."""
    match given.verb:
        case "keep" | "pull":
            from .pipeline import networks

            getattr(networks, given.verb)(given.experiments, given.profile)
        case "restore":
            from .pipeline import restoring

            how = given.profile, given.self_ensemble, given.megapixels
            restoring.restore_files(given.images, given.by, given.into, *how)
        case "verdicts":
            from .reports import plan

            return plan.show(given.profile, given.seeds)
        case "list":
            from .pipeline import listing

            print(*listing.lines(given.profile, given.study), sep="\n")
        case "new":
            from .params import entry

            print(entry.add(given.experiment, given.other, given.set, given.study, given.title))
        case "search":
            runner.search(parameters.Params(profile=given.profile))
        case "repro" | "compare":
            from .pipeline import repro as pipeline  # needs pandas, which a stage's own process does not

            if given.verb == "compare":
                return pipeline.compare(given.revision)
            return pipeline.repro(given.profile, given.study, given.jobs, given.cluster)
        case "schema":
            from .params import completion

            completion.FILE.write_text(completion.text())
        case "check":
            parameters.check(params := parameters.Params())
            print(f"params.yaml: {len(params.experiments)} experiments, {len(params.studies)} studies, no fault")
        case "resolve":
            resolve.write(parameters.Params())
        case "run":
            stage, key = (given.stage, given.key) if given.stage else runner.stage_of_dvc()
            runner.run(parameters.Params(), stage, key)
    return None


#: Verbs that write nothing: Ctrl-C ends them at once.
READING = ("check", "compare", "list", "verdicts")

#: Signals that were received. An import that one interrupts may end in another error: NumPy's recurse.
_INTERRUPTS: list[int] = []


def _interrupt(number: int, frame: object) -> None:
    _INTERRUPTS.append(number)
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    os.environ.setdefault("LOGNAME", str(os.getuid()))  # PyTorch asks for it, and a container's user may have no name
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL and given.verb not in READING:
            signal.signal(signal.SIGINT, _interrupt)
        _check_folder(Path.cwd())
        return _run(given) or 0
    except (parameters.ParamsError, runner.StageError) as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or _INTERRUPTS):
            raise
        if given.verb != "run":  # a stage's process is interrupted together with the one that says so
            after = "; `python -m lib repro` goes on from what is done" if given.verb == "repro" else ""
            print(f"interrupted{after}", file=sys.stderr)
        return 130


def _check_folder(here: Path) -> None:
    """Raise StageError inside another clone, whose files this one, the installed, would not act on."""
    clone = next((folder for folder in (here, *here.parents) if (folder / "lib" / "__main__.py").exists()), None)
    if clone not in (None, parameters.ROOT):
        raise runner.StageError(f"{here}: lies in {clone}, but `lib` is that of {parameters.ROOT}; "
                                f"`cd {clone}` first, or activate its environment")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
