"""The `yoloprune` command: parse, call, print. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from yolo_prune.cli import config, darknet, data
from yolo_prune.cli.darknet import export, import_
from yolo_prune.cli.measure import bench, detect, evaluate, profile, report
from yolo_prune.cli.prune import iterate, plan, prune, sensitivity
from yolo_prune.cli.shortages import explain_shortage
from yolo_prune.cli.streams import prepare_streams, print_result
from yolo_prune.cli.train import finetune, run, train
from yolo_prune.console import report_end
from yolo_prune.contention import watch_contention
from yolo_prune.errors import ConfigError, Interrupted, Terminated, YoloPruneError
from yolo_prune.launch import check_alone, is_launched, is_told_by_another, mark_failure, name_rank, read_launch
from yolo_prune.threads import limit_threads
from yolo_prune.version import __version__

HELP = """Make YOLOv3 detectors small and fast: train, prune channels, finetune, bench.

Start with drawn hands, which takes five minutes on two cores, or with images of your own:

```
yoloprune run demo

yoloprune train --data hands/data.yaml --cfg yolov3-tiny-hand
yoloprune prune --ratio 0.8
yoloprune finetune
yoloprune bench
```
"""

app = typer.Typer(
    help=HELP,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: dict[str, tuple[tuple[Callable[..., None], str], ...]] = {
    "Train and prune": (
        (run, "All stages in order, from a YAML file."),
        (train, "Train a detector."),
        (prune, "Prune a checkpoint while it is trained on."),
        (finetune, "Train a pruned checkpoint further."),
        (iterate, "Prune and finetune in small steps."),
        (plan, "Write what prune would remove."),
        (sensitivity, "Measure what pruning each group costs."),
    ),
    "Measure and use": (
        (bench, "Compare size, speed and mAP."),
        (report, "Write one page of all that is measured."),
        (evaluate, "Score checkpoints, or any tool's detections."),
        (profile, "Time every layer."),
        (detect, "Detect objects in images and videos."),
    ),
    "Files": (
        (export, "Write a checkpoint for other engines."),
        (import_, "Read Darknet's and PyTorch's weights."),
    ),
}
for panel, commands in _COMMANDS.items():
    for command, summary in commands:
        name = command.__name__.rstrip("_")
        app.command(name, short_help=summary, rich_help_panel=panel)(command)
app.add_typer(darknet.app, name="cfg", short_help="Darknet cfg files: make, show.", rich_help_panel="Files")
app.add_typer(data.app, name="data", short_help="Data sets: draw, check, convert.", rich_help_panel="Files")
app.add_typer(config.app, name="config", short_help="Settings: list, copy.", rich_help_panel="Files")

TELLING_S = 10.0
"""Seconds that a process waits at its end until another has told why."""
IN_SEVERAL_PROCESSES = ("train", "finetune")
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]
"""What Typer raises for every mistake on the command line; it has no public name."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print_result(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take the options that belong to no command; main() reads --debug itself, before anything can fail."""
    command = context.invoked_subcommand
    if command is None or {"-h", "--help"} & set(sys.argv):
        return
    try:
        read_launch()
    except ConfigError as error:
        mark_failure(error, None, is_told=False)
        raise
    if command not in IN_SEVERAL_PROCESSES:
        check_alone(command)


def main() -> None:
    """Run the command line; exit 0 done, 2 bad usage or input, 130 or 143 after a signal, 1 a defect."""
    warnings.filterwarnings("ignore", module="PIL")  # odd EXIF data of images that are read all the same
    prepare_streams()
    limit_threads()
    if is_launched():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else PyTorch writes pages where a peer is gone
    try:
        with _raising_on_signals(), watch_contention():
            result = app(prog_name="yoloprune", standalone_mode=False)
        sys.stdout.flush()
    except YoloPruneError as error:
        _leave(2, error, str(error), "error")
    except Interrupted as stop:
        _leave(stop.exit_code, stop, str(stop))
    except (KeyboardInterrupt, typer.Abort) as stop:
        _leave(130, stop, "stopped")
    except Terminated as stop:
        _leave(128 + signal.SIGTERM, stop, "stopped")
    except (BrokenPipeError, SystemExit):  # Typer makes the second of the first, and of nothing else
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        sys.exit(141)
    except _UsageError as error:
        _leave_usage(error)
    except Exception as error:  # noqa: BLE001  # the last resort: a defect is named as one, never shown raw
        if (shortage := explain_shortage(error)) is not None:
            _leave(2, error, str(shortage), "error")
        line = f"{type(error).__name__}: {error}; run yoloprune --debug … for the traceback, and report it"
        _leave(1, error, line, "defect")
    sys.exit(result if isinstance(result, int) else 0)


@contextmanager
def _raising_on_signals() -> Iterator[None]:
    """Let SIGTERM raise Terminated, and SIGINT KeyboardInterrupt, so that what is half-written is removed.

    A second SIGTERM ends the process at once. Training has its own handlers, and these are there for its second signal.
    One of several processes that is ending already, because of an error or a signal, goes on with that.
    """

    def terminate(signum: int, frame: FrameType | None) -> None:
        if is_launched() and isinstance(sys.exc_info()[1], YoloPruneError | Interrupted | KeyboardInterrupt):
            return
        signal.signal(signum, signal.SIG_IGN if is_launched() else signal.SIG_DFL)
        raise Terminated

    handlers = {signal.SIGTERM: terminate, signal.SIGINT: signal.default_int_handler}
    own = {
        signum: handler for signum, handler in handlers.items() if signal.getsignal(signum) == signal.SIG_DFL
    }  # else the caller ignores it, or knows better
    for signum, handler in own.items():
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, handler in own.items():
            if signal.getsignal(signum) is handler:
                is_deaf = is_launched() and signum == signal.SIGTERM
                signal.signal(signum, signal.SIG_IGN if is_deaf else signal.SIG_DFL)


def _leave_usage(error: Exception) -> None:
    """Say what is wrong with the command line and where help is; show the help where no command was named."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "yoloprune"
    if context and message == "Missing command.":
        with redirect_stdout(sys.stderr):
            print(context.get_help())
        sys.exit(2)
    _leave(2, error, f"{message.rstrip('.')}; see {command} --help", "error")


def _leave(code: int, error: BaseException, line: str, kind: str = "") -> NoReturn:
    """End with an exit code, and a line unless another process tells it; of several, be deaf to torchrun's SIGTERM."""
    if is_launched():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if not is_told_by_another(error, is_common=kind != "defect"):
            report_end(name_rank(error) + line, kind)
        elif "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun ends the one that tells as soon as this process ends
            signal.sigtimedwait({signal.SIGTERM}, TELLING_S)
    except (OSError, ImportError):  # stderr is full, or no file can be opened
        with suppress(OSError):
            os.write(2, f"{kind}{': ' if kind else ''}{line}\n".encode(errors="replace"))
        os._exit(code)  # at its end the interpreter would try again
    sys.exit(code)
