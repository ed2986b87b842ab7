"""The command line: parse, call one verb, turn errors into exit codes.

0 done, 1 failed, 2 bad usage (before any work), 3 finished with too many failed images, 130 interrupted.
The result goes to stdout, the log to stderr.
Verbs are imported when they are called: --help never imports torch or Ray.
What a verb is given is read from the context into its specification (`options.given`).
"""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import re
import sys
import tempfile
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from ad_jobs.cli import cluster_commands, commands, options, run_commands
from ad_jobs.errors import RetroscanError
from cluster.errors import AccessDenied, ClusterError, Full, KeysRefused, NotFound, StorageError


class _Verbs(TyperGroup):
    """Runs a verb and turns what it raises on purpose into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RetroscanError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except ClusterError as error:
            _complain(str(error))
            raise typer.Exit(1) from error
        except StorageError as error:
            _complain(f"Storage failed: {error}. {_remedy(error)}")
            raise typer.Exit(1) from error
        except OSError as error:
            # Of a local file that is no part of a store: what is sorted, or made before it is copied.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            folder = tempfile.gettempdir()
            _complain(f"No room is left: {error}. Free some, in {folder}, too, or let TMPDIR name a larger disk.")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _complain("Interrupted. The same command again continues.")
            raise typer.Exit(130) from error


# The first that it is.
_REMEDIES: tuple[tuple[type[StorageError], str], ...] = (
    (Full, "Free space there, and run the same command again."),
    (
        KeysRefused,
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of a store other than AWS also AWS_ENDPOINT_URL; "
        "retroscan doctor --bucket BUCKET tells what they may.",
    ),
    (AccessDenied, "Ask for access to it, or name a place that this user may use."),
    (NotFound, "Check the path."),
)


def _remedy(error: StorageError) -> str:
    """What to do where a store failed."""
    return next((text for kind, text in _REMEDIES if isinstance(error, kind)), "The same command again continues.")


app = typer.Typer(
    name="retroscan",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
log = logging.getLogger("retroscan")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"retroscan {version('retroscan')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def retroscan(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Find the abnormal images of an archive, and where they are abnormal.

    For research and quality use, not for diagnosis.
    """


VERBS = (
    (commands.demo, "retroscan demo --out demo"),
    (commands.detectors, "retroscan detectors"),
    (commands.index, "retroscan index s3://archive/2024 --out s3://results/manifest --headers"),
    (commands.fit, "retroscan fit --detector padim --normal ./normal --out ./model --size 128 --set patch=3"),
    (commands.fuse, "retroscan fuse ./linear ./padim ./knn --out ./fused"),
    (commands.calibrate, "retroscan calibrate ./model --normal ./held_out --max-fpr 0.01"),
    (commands.plan, "retroscan plan s3://results/manifest --model ./model --nodes 4 --cores 16 --price-per-hour 0.70"),
    (commands.scan, "retroscan scan s3://archive/2024 --model ./model --out s3://results/run-1 --heatmaps flagged"),
    (run_commands.decide, "retroscan decide ./run --fdr 0.1"),
    (run_commands.evaluate, "retroscan evaluate ./run --labels labels.csv"),
    (run_commands.report, "retroscan report ./run"),
    (run_commands.review, "retroscan review ./run --reviewer Ada"),
    (run_commands.compare, "retroscan compare ./run-1 ./run-2 --out ./compared"),
    (run_commands.verify, "retroscan verify ./run --sample 100"),
    (commands.show_, "retroscan show ./model"),
    (run_commands.export, "retroscan export ./run --format dicom-sc --out ./overlays"),
    (commands.export_model, "retroscan export-model ./model --out model.onnx"),
    (commands.score, "retroscan score ./model image.dcm other.png"),
    (
        cluster_commands.submit,
        "retroscan submit --address http://head:8265 -- scan s3://archive --model s3://models/m --out s3://results/r",
    ),
    (cluster_commands.jobs, "retroscan jobs --address http://head:8265"),
    (cluster_commands.doctor, "retroscan doctor --bucket archive"),
)

for _verb, _example in VERBS:
    # What stands after the verb that is submitted is that verb's.
    _settings = {"allow_interspersed_args": _verb is not cluster_commands.submit}
    _name = _verb.__name__.removesuffix("_").replace("_", "-")
    app.command(_name, context_settings=_settings, epilog=options.example(_example))(_verb)


def run() -> None:
    """Entry point of the console script: `main` in a process of its own.

    At its end the hooks run that the verb's imports have registered, and nothing else does.
    A native library's thread that lets go of a Python object while the interpreter is taken down ends the process by
    SIGABRT, and a verb that is done would be told as one that failed.
    """
    code = 1

    def leave() -> None:
        # Where this fails, the interpreter tells it and leaves by its own way.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # The first that is registered is the last to run: before the verb imports Ray and all that has hooks.
    atexit.register(leave)
    try:
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        raise


def main(arguments: list[str] | None = None) -> None:
    """Call the verb of a command line.

    Raises:
        SystemExit: always, with the exit code.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
        handler.setFormatter(_OneLine("%(message)s"))
    else:
        # Whole lines, for files and grep.
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does by itself: a path of the command line may be no Unicode text.
        sys.stdout.reconfigure(errors="backslashreplace")
    app(arguments)


# Of the C0 and C1 sets (ISO/IEC 6429) all but the line feed, and Unicode's own ends of lines.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def _shown(text: str) -> str:
    """A text for a terminal or a log: a name in it may hold what would steer them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _OneLine(logging.Formatter):
    """A message is a line, whatever names it has in it; a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = _shown(record.message).replace("\n", "\\n")
        return super().formatMessage(record)


def _complain(text: str) -> None:
    print(f"retroscan: {_shown(text)}", file=sys.stderr)


if __name__ == "__main__":
    run()
