"""All errors that a user can correct, as one class hierarchy.

    YoloPruneError                 one line: where, what is wrong, what would be right (exit code 2)
    ├── CfgError                   a Darknet cfg: an unknown section, a route to a missing layer, a missing key
    ├── WeightsError               a Darknet .weights file: truncated, or made for another network
    ├── CheckpointError            a .pt file that is not ours, or whose cfg and tensors disagree
    ├── DatasetError               data.yaml, labels, images
    ├── ConfigError                a setting or a flag
    ├── PlanError                  a ratio or a budget that cannot be met, a plan for another network
    ├── TrainingError              a run that cannot continue: NaN loss, nothing to resume
    ├── EngineError                an engine that cannot be built or run here: no C++ compiler
    ├── OutputError                a place that cannot be written
    └── InsufficientMemoryError    a batch, an image or a network that needs more memory than there is
    Interrupted                    a signal asked the run to stop; its state is on disk (exit 130, 143)
    └── TimeUp                     its time is up; its state is on disk (exit 124)
    Terminated                     SIGTERM came; what is half-written is removed on the way out (exit 143)

Any other exception that is not caught is a defect of this package (exit code 1).
"""

from __future__ import annotations

from pathlib import Path

TIME_UP = 124
"""The exit code of a run whose time is up."""


class YoloPruneError(Exception):
    """State in one line where something is wrong, what is wrong, and how to correct it.

    `where` names a file, `file:line`, key or flag; `right` starts in lower case and tells what to do.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, right: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.right = right
        line = what if self.where is None else f"{self.where}: {what}"
        super().__init__(" ".join((line if right is None else f"{line}; {right}").split()))


class CfgError(YoloPruneError):
    """A Darknet cfg is invalid."""


class WeightsError(YoloPruneError):
    """A Darknet .weights file does not fit the network."""


class CheckpointError(YoloPruneError):
    """A checkpoint cannot be read, or contradicts itself."""


class DatasetError(YoloPruneError):
    """A data set, a label or an image is invalid."""


class ConfigError(YoloPruneError):
    """A setting is unknown or out of range."""


class PlanError(YoloPruneError):
    """A pruning plan cannot be made or does not fit the network."""


class TrainingError(YoloPruneError):
    """A training run cannot start or continue."""


class EngineError(YoloPruneError):
    """An engine cannot be built or run on this machine."""


class OutputError(YoloPruneError):
    """An output cannot be written."""


class InsufficientMemoryError(YoloPruneError):
    """Something needs more memory than there is."""


RESUMABLE = "what was finished is on disk, and the run can be resumed"


class Interrupted(Exception):
    """A signal asked for a clean stop; `exit_code` is 128 + the signal's number, `left` says what the run leaves."""

    def __init__(self, signum: int, left: str = RESUMABLE) -> None:
        self.exit_code = 128 + signum
        self.what, self.left = f"stopped by signal {signum}", left
        self.resume: str | None = None
        """The command that goes on, where it is known."""
        super().__init__()

    def __str__(self) -> str:
        how = "" if self.resume is None else f": {self.resume}"
        return f"{self.what}; {self.left}{how}"


class Terminated(BaseException):
    """SIGTERM came. As with KeyboardInterrupt, nothing that handles errors takes it for one."""


class TimeUp(Interrupted):
    """The time of a run is up; `exit_code` is 124, as that of timeout(1)."""

    def __init__(self, left: str = RESUMABLE) -> None:
        super().__init__(0, left)
        self.exit_code = TIME_UP
        self.what = "the time is up"
