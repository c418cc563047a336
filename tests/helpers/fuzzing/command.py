"""Run the command line, or a function, in this process, and tell how it ended."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import typer

from fuzzing.case import Case, Outcome
from yolo_prune import console
from yolo_prune.cli import main as command_line
from yolo_prune.errors import TIME_UP, YoloPruneError

_leave = command_line._leave


@cache
def make_command() -> Any:
    """Return the tree of commands, which takes long to build."""
    return typer.main.get_command(command_line.app)


def run_command(case: Case) -> Outcome:
    """Run `yoloprune` with the words of a case."""
    streams = sys.stdin, sys.stdout, sys.stderr, sys.argv
    before, traces = dict(os.environ), list[str]()

    def leave(code: int, error: BaseException, line: str, kind: str = "") -> NoReturn:
        if code == 1:
            traces.append(traceback.format_exc())
        _leave(code, error, line, kind)

    command_line._leave = leave
    command_line.app = make_command()
    sys.stdin = io.TextIOWrapper(io.BytesIO(case.stdin))
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape") for _ in range(2))
    sys.argv = ["yoloprune", *case.words]
    os.environ |= case.environment
    console._console.cache_clear()
    code: object = 0
    try:
        command_line.main()
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:  # noqa: BLE001  # main() lets none pass
        code = 1
        traces.append(traceback.format_exc())
    finally:
        sys.stderr.flush()
        err = sys.stderr.buffer.getvalue().decode("utf-8", "replace")
        sys.stdin, sys.stdout, sys.stderr, sys.argv = streams
        os.environ.clear()
        os.environ |= before
        console.set_quiet(False)
    allowed = (0, 2, TIME_UP) if "--max-minutes" in case.words else (0, 2)
    return Outcome(code if isinstance(code, int) else 1, err, "".join(traces), allowed)


def run_function(read: Callable[[], object]) -> Outcome:
    """Run a function, which may raise errors of the package alone."""
    try:
        read()
    except YoloPruneError as error:
        line = str(error)
        return Outcome(2, console.escape(line)) if len(line) < 50_000 else Outcome(2, line)
    except BaseException:  # noqa: BLE001  # that is what is looked for
        return Outcome(1, "", traceback.format_exc())
    return Outcome(0)
