"""The command `yoloprune`, and `python -m yolo_prune`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line. While it is being imported, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from yolo_prune.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
