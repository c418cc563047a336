"""One of several processes fails, dies or is stopped: the others end, one line names it, and the run can be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT
from rank_faults import FAULTS, Outcome
from tiny import Cli
from tiny import Outcome as Ended
from torch.distributed import HashStore  # type: ignore[attr-defined]  # documented, not in its types

from yolo_prune.cli.main import IN_SEVERAL_PROCESSES
from yolo_prune.errors import ConfigError
from yolo_prune.launch import Launch, read_launch
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training import peers as peers_module
from yolo_prune.training.peers import Failure, Peers
from yolo_prune.training.signals import watch_signals

HELPERS = ROOT / "tests/helpers"
STOPPED = "what was finished is on disk, and the run can be resumed: yoloprune train --resume --name train"
RESUME = "; resume the run"
NOBODY = "MASTER_ADDR: no process of the run responds at 127.0.0.1:"
SAID = {
    "nan": ([2, 2], "error: rank 1: the loss became nan; start again with a lower learning_rate"),
    "killed": ([2, -9], "error: rank 1: was killed by SIGKILL (process "),
    "killed, torchrun": ([2, -9], "error: rank 1: was killed by SIGKILL (process "),
    "first killed": ([-9, 2], "error: rank 0: was killed by SIGKILL (process "),
    "crash": ([2, -11], "error: rank 1: was killed by SIGSEGV (process "),
    "defect": ([2, 1], "defect: rank 1: KeyError: 'odd'; run yoloprune --debug"),
    "no data": ([2, 2], "error: rank 1: nowhere.yaml: there is no such file; name a data.yaml"),
    "no data at all": ([2, 2], "error: rank 0: nowhere.yaml: there is no such file; name a data.yaml"),
    "bad flag": ([2, 2], "error: Invalid value for '--epochs': "),
    "deaf": ([2, -9], "error: rank 1: was killed by SIGKILL (process "),
    "still": ([2, -9], "error: rank 1: has not responded for 2 s: its process is stopped, or its machine "),
    "missing": ([2], "error: rank 1: did not come within 1 s; start all processes"),
    "no first": ([2], f"error: rank 1: {NOBODY}"),
    "silent host": ([2], f"error: rank 1: {NOBODY}"),
    "unknown host": ([2], "error: rank 1: MASTER_ADDR: nowhere.invalid cannot be resolved; name the machine"),
    "port in use": ([2], "error: rank 0: MASTER_PORT: "),
    "terminated": ([143, 143], f"stopped by signal 15; {STOPPED}"),
    "interrupted": ([130, 130], f"stopped by signal 2; {STOPPED}"),
    "one terminated": ([143, 143], f"stopped by signal 15; {STOPPED}"),
}
BEFORE_TRAINING = (
    "no data",
    "no data at all",
    "bad flag",
    "missing",
    "no first",
    "silent host",
    "unknown host",
    "port in use",
)
STEPS = {"terminated": 2, "interrupted": 2, "one terminated": 2}
"""How many steps of the first epoch are in last.pt."""
ALL = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(scope="module")
def place(hands: Path, tiny_cfg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which all faults have happened."""
    out = tmp_path_factory.mktemp("faults")
    paths = os.pathsep.join([str(HELPERS), str(ROOT)])
    subprocess.run(
        [sys.executable, str(HELPERS / "rank_faults.py"), str(out), str(hands), str(tiny_cfg)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        timeout=600,
        check=True,
    )
    return out


def read_outcome(place: Path, name: str) -> Outcome:
    return Outcome(**json.loads((place / "outcomes.json").read_text())[name])


def list_ends(outcome: Outcome) -> list[str]:
    """Return all lines on stderr but those that say how the training goes."""
    lines = [line for err in outcome.err for line in err.splitlines()]
    return [line for line in lines if not line.startswith(("train: ", "reading the labels", "epoch "))]


def test_every_fault_is_tried() -> None:
    assert SAID.keys() == FAULTS.keys() - {"nothing"}


@pytest.mark.parametrize("name", SAID)
def test_one_line_names_the_process_and_what_it_said(place: Path, name: str) -> None:
    codes, said = SAID[name]
    outcome = read_outcome(place, name)
    (line,) = list_ends(outcome)
    assert line.startswith(said)
    assert line.endswith(RESUME) == ("killed" in said or "responded" in said)
    assert outcome.codes == codes
    assert outcome.out == [""] * len(codes)
    assert outcome.seconds < 20  # the limits of the faults are below 2 s, those of the program 30 s and more
    checkpoints = sorted(path.name for path in (place / name).rglob("*.pt"))
    assert checkpoints == ([] if name in BEFORE_TRAINING else ["last.pt"])
    assert not list((place / name).rglob("*.tmp"))


@pytest.mark.parametrize("name", STEPS)
def test_a_stopped_run_can_be_resumed(place: Path, name: str) -> None:
    stored = load_checkpoint(place / name / "runs/train/last.pt").training
    assert (stored["epoch"], stored["stats"]["steps"], stored["is_done"]) == (0, STEPS[name], False)


def test_processes_without_a_fault_say_what_one_would(place: Path) -> None:
    outcome = read_outcome(place, "nothing")
    assert outcome.codes == [0, 0]
    assert outcome.out == ["runs/train/best.pt\n", ""]
    assert [line.partition(":")[0] for line in list_ends(outcome)][1:] == ["next"]
    assert outcome.err[1] == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR: is not set, but RANK is; start the processes with torchrun, or unset RANK"),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR: is not set, but RANK is; "),
        ({"MASTER_PORT": None}, "MASTER_PORT: is not set, but RANK is; "),
        ({"LOCAL_RANK": None}, "LOCAL_RANK: is not set, but RANK is; "),
        ({"WORLD_SIZE": None}, "WORLD_SIZE: is not set, but RANK is; "),
        ({"RANK": None}, "RANK: is not set, but WORLD_SIZE is; "),
        ({"RANK": "first"}, "RANK: 'first' is no whole number from 0; "),
        ({"RANK": "-1"}, "RANK: '-1' is no whole number from 0; "),
        ({"RANK": "2"}, "RANK: 2 is not below WORLD_SIZE, which is 2; "),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK: 7 is not below WORLD_SIZE, which is 2; "),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: '0' is no whole number from 1; "),
        ({"WORLD_SIZE": "1e3"}, "WORLD_SIZE: '1e3' is no whole number from 1; "),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT: 70000 is not below 65536; "),
        ({"MASTER_PORT": "http"}, "MASTER_PORT: 'http' is no whole number from 0; "),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT: 'x' is no whole number from 0; "),
    ],
)  # fmt: skip
def test_what_torchrun_sets_is_checked(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], said: str
) -> None:
    for name, value in {**ALL, **changes}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError):
        read_launch()
    with kept_handlers():
        outcome = cli("bench", "a.pt")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {said}")
    assert outcome.err.count("\n") == 1
    assert cli("bench", "--help").code == 0


class kept_handlers:  # read as a word
    """Keep the handlers of signals as they are: a process that ends because of another's failure ignores some."""

    def __enter__(self) -> None:
        self._before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


COMMANDS = (
    *("run", "prune", "iterate", "plan", "sensitivity", "bench", "report", "evaluate", "profile", "detect", "export"),
    *("import", "cfg", "data", "config"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_for_one_process_refuses_several(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    words = {"cfg": ["cfg", "show", "a.cfg"], "data": ["data", "synthetic"], "config": ["config", "reference"]}
    words = {**words, "run": ["run", "demo"], "detect": ["detect", "a.pt", "a.jpg"], "import": ["import", "a.cfg"]}
    for rank in "01":
        for name, value in {**ALL, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        with kept_handlers():
            outcome = cli(*words.get(command, [command]))
        assert (outcome.code, outcome.out) == (2, "")
        right = "run it without torchrun; of the commands train and finetune run in several"
        line = f"error: torchrun: {command} runs in one process, not in 2; {right}\n"
        assert outcome.err == (line if rank == "0" else "")
    assert not list(workplace.iterdir())


def test_who_is_quiet_waits_until_torchrun_has_heard_the_other(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ALL, "RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "one"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("yolo_prune.cli.main.TELLING_S", 60.0)
    sending = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    with kept_handlers():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the timer's thread
        sending.start()
        assert cli("bench") == Ended(2, "", "")
    sending.join()


def test_all_commands_are_known(cli: Cli) -> None:
    known = {*COMMANDS, *IN_SEVERAL_PROCESSES}
    listed = {line.split()[1] for line in cli("--help").out.splitlines() if line.startswith("│ ") and line[2].isalpha()}
    assert listed == known


def test_one_process_of_torchrun_is_as_one_without(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ALL, "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with kept_handlers():
        assert cli("cfg", "show", "yolov3-tiny-hand").code == 0


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    """Return what process 0 of two knows of the other, which has not come."""
    made = Peers(Launch(0, 2, 0, "127.0.0.1", 1), HashStore())
    yield made
    made.leave()


@pytest.mark.parametrize(
    ("kills", "status", "said"),
    [
        (
            1,
            signal.SIGKILL,
            "was killed by SIGKILL because the memory of the machine ran out; use a smaller batch size",
        ),
        (1, None, "was killed by SIGKILL because the memory of the machine ran out; use a smaller batch size"),
        (1, signal.SIGSEGV, "was killed by SIGSEGV; resume the run"),
        (0, None, "ended without a word, as after SIGKILL or a crash; resume the run"),
        (0, 3 << 8, "ended with exit code 3 before the run was done; resume the run"),
        (0, 60, "was killed by signal 60; resume the run"),
    ],
)
def test_how_a_process_died_is_told(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, kills: int, status: int | None, said: str
) -> None:
    before = peers_module._count_memory_kills()
    monkeypatch.setattr(peers_module, "_count_memory_kills", lambda: before + kills)
    peers._note_death(1, status)
    failure = peers.find_failure()
    assert failure is not None
    assert str(failure.error).startswith(f"rank 1: {said}")


def test_the_first_failure_counts(peers: Peers) -> None:
    first = Failure(1, 2, "data.yaml: is not there")
    assert peers.record(first) == first
    assert peers.record(Failure(0, 1, "other")) == first
    assert peers.find_failure() == first


def test_a_broken_connection_without_a_known_cause_is_not_waited_for_long(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "SILENCE_AFTER_ERROR_S", 0.1)
    monkeypatch.setattr(peers_module, "BEAT_S", 0.0)
    assert peers.await_failure() is None


@pytest.mark.parametrize("is_launched", [False, True])
def test_ctrl_c_that_comes_twice_at_once_is_one_to_several_processes(
    monkeypatch: pytest.MonkeyPatch, is_launched: bool
) -> None:
    if is_launched:
        monkeypatch.setenv("RANK", "0")
    with kept_handlers():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with watch_signals() as outer, watch_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert (stop.code, outer.code) == (130, 130)
            if is_launched:
                signal.raise_signal(signal.SIGINT)
                monkeypatch.setattr("yolo_prune.training.signals.SAME_S", 0.0)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
