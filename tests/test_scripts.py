from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

SCRIPTS = (
    *("scripts/setup", "scripts/demo", "scripts/test", "scripts/check", "scripts/oracle", "scripts/versions"),
    ".ci/run",
)

FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_LOG"
case "$*" in
-V) echo "Python 3.12.0" ;;
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip install"*) exit "${FAKE_PIP_EXIT:-0}" ;;
esac
"""
FAKE_ORACLE_PYTHON = """#!/usr/bin/env bash
echo "$0 $*" >>"$FAKE_LOG"
case "$*" in
"-m venv --clear .venv-opencv4") mkdir -p .venv-opencv4/bin && cp "$0" .venv-opencv4/bin/python ;;
"-m pip install"*) [[ -z ${FAKE_PIP_FAILS-} ]] && touch .venv-opencv4/cv2 ;;
"-c import cv2") [[ -e .venv-opencv4/cv2 ]] ;;
"scripts/oracle_write.py "*) touch "$2/case" ;;
"scripts/oracle_compare.py "*) [[ -e $2/case && -z ${FAKE_GAP-} ]] ;;
esac
"""
FAKE_VERSIONS_PYTHON = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "$(basename "$0") $*" >>"$FAKE_LOG"
case "$*" in
-V) echo "Python 3.10.0" ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$FAKE_TOOL" "$3/bin/pytest" && cp "$FAKE_TOOL" "$3/bin/yoloprune" ;;
"-m build "*)
    mkdir -p "$4/yolo_prune-1/yolo_prune" && touch "$4/yolo_prune-1-py3-none-any.whl" "$4/yolo_prune-1/kept"
    tar -czf "$4/yolo_prune-1.tar.gz" -C "$4" yolo_prune-1
    ;;
"- "*) echo "torch==2.9" ;;
"-m pip install --constraint"*) cp "$5" "$FAKE_LOG.constraints" ;;
esac
"""
FAKE_VERSIONS_TOOL = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$FAKE_LOG"
[[ $(basename "$0") != pytest ]] || ls >"$FAKE_LOG.tested"
[[ -z ${FAKE_BROKEN-} || $(basename "$0") != "$FAKE_BROKEN" ]]
"""
FAKE_TOOL = """#!/usr/bin/env bash
echo "$(basename "$0") $*"
[[ $(basename "$0") != "${FAKE_BROKEN-}" ]]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Copy the scripts and nothing else, so that nothing of this checkout can be touched."""
    for name in (*SCRIPTS, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def call(project: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "YOLO_PRUNE_HANDS")}
    return subprocess.run(
        [project / name, *arguments], env=clean | environment, cwd="/", capture_output=True, text=True, check=False
    )


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("name", SCRIPTS)
def test_is_an_executable_that_bash_can_parse(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / name], check=True)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_prints_usage_and_does_nothing(project: Path, name: str, flag: str) -> None:
    before = sorted(project.rglob("*"))
    result = call(project, name, flag)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {name}")
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize("name", ["scripts/setup", "scripts/check", "scripts/oracle", "scripts/versions", ".ci/run"])
def test_an_unknown_argument_is_rejected_before_anything_is_done(project: Path, name: str) -> None:
    before = sorted(project.rglob("*"))
    result = call(project, name, "--fxi")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"{name}: unknown argument '--fxi'; see {name} -h\n"
    assert sorted(project.rglob("*")) == before


class TestSetup:
    @pytest.fixture
    def fake(self, project: Path) -> dict[str, str]:
        write_program(project / "fake-python", FAKE_PYTHON)
        return {"PYTHON": str(project / "fake-python"), "FAKE_LOG": str(project / "log")}

    def steps(self, project: Path) -> list[str]:
        """Return what was made and installed since the last call."""
        log = project / "log"
        lines = log.read_text().splitlines()
        log.unlink()
        return [line for line in lines if line.startswith(("-m venv", "-m pip install"))]

    VENV = "-m venv --clear .venv"
    INSTALL = "-m pip install -e .[dev]"

    def test_installs_once_and_again_when_pyproject_changed(self, project: Path, fake: dict[str, str]) -> None:
        first = call(project, "scripts/setup", **fake)
        assert (first.returncode, first.stdout) == (0, "")
        assert self.steps(project) == [self.VENV, self.INSTALL]

        second = call(project, "scripts/setup", **fake)
        assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
        assert self.steps(project) == []

        with (project / "pyproject.toml").open("a") as file:
            file.write("\n")
        assert call(project, "scripts/setup", **fake).returncode == 0
        assert self.steps(project) == [self.INSTALL]

    def test_redoes_a_venv_whose_first_install_was_cut_short(self, project: Path, fake: dict[str, str]) -> None:
        result = call(project, "scripts/setup", **fake, FAKE_PIP_EXIT="1")
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("scripts/setup: pip could not install; ")
        self.steps(project)
        assert call(project, "scripts/setup", **fake).returncode == 0
        assert self.steps(project) == [self.VENV, self.INSTALL]

    def test_keeps_a_venv_whose_later_install_failed(self, project: Path, fake: dict[str, str]) -> None:
        call(project, "scripts/setup", **fake)
        (project / "pyproject.toml").write_text("[project]\n")
        assert call(project, "scripts/setup", **fake, FAKE_PIP_EXIT="1").returncode == 1
        self.steps(project)
        assert call(project, "scripts/setup", **fake).returncode == 0
        assert self.steps(project) == [self.INSTALL]

    def test_redoes_a_venv_that_was_moved_or_lost_its_python(self, project: Path, fake: dict[str, str]) -> None:
        call(project, "scripts/setup", **fake)
        (project / ".venv/bin/python").unlink()
        self.steps(project)
        assert call(project, "scripts/setup", **fake).returncode == 0
        assert self.steps(project) == [self.VENV, self.INSTALL]

        moved = project / "elsewhere"
        shutil.copytree(project, moved, ignore=shutil.ignore_patterns("elsewhere"))
        assert call(moved, "scripts/setup", **fake).returncode == 0
        assert self.steps(project) == [self.VENV, self.INSTALL]

    def test_another_python_that_is_asked_for_makes_another_venv(self, project: Path, fake: dict[str, str]) -> None:
        call(project, "scripts/setup", **fake)
        write_program(project / "fake-python", FAKE_PYTHON.replace("3.12.0", "3.13.0"))
        self.steps(project)
        assert call(project, "scripts/setup", **fake).returncode == 0
        assert self.steps(project) == [self.VENV, self.INSTALL]

    def test_says_in_one_line_that_the_named_python_will_not_do(self, project: Path) -> None:
        result = call(project, "scripts/setup", PYTHON="/bin/false")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("scripts/setup: PYTHON=/bin/false is no Python >= 3.10 ")
        assert result.stderr.count("\n") == 1
        assert not (project / ".venv").exists()

    def test_takes_the_first_python_that_is_new_enough(self, project: Path, fake: dict[str, str]) -> None:
        tools = project / "tools"
        tools.mkdir()
        for program in ("bash", "env", "dirname", "cat", "cksum", "head", "mkdir", "cp"):
            (tools / program).symlink_to(shutil.which(program) or program)
        none = call(project, "scripts/setup", PATH=str(tools))
        assert (none.returncode, none.stdout) == (1, "")
        assert none.stderr.startswith("scripts/setup: no Python >= 3.10 ")
        assert none.stderr.count("\n") == 1

        write_program(tools / "python3", "#!/usr/bin/env bash\nexit 1\n")
        write_program(tools / "python3.11", FAKE_PYTHON)
        found = call(project, "scripts/setup", PATH=str(tools), FAKE_LOG=fake["FAKE_LOG"])
        assert found.returncode == 0
        assert self.steps(project) == [self.VENV, self.INSTALL]


class TestCheck:
    @pytest.fixture(autouse=True)
    def _fake_tools(self, project: Path) -> None:
        write_program(project / "scripts/setup", "#!/usr/bin/env bash\n")
        for tool in ("ruff", "mypy", "lint-imports"):
            write_program(project / ".venv/bin" / tool, FAKE_TOOL)

    def calls(self, result: subprocess.CompletedProcess[str]) -> list[str]:
        return [line.strip() for line in result.stdout.splitlines() if not line.startswith("scripts/check:")]

    def test_runs_all_four(self, project: Path) -> None:
        result = call(project, "scripts/check")
        assert result.returncode == 0
        assert self.calls(result) == ["ruff format --check", "ruff check", "mypy", "lint-imports"]

    def test_fix_repairs_first(self, project: Path) -> None:
        result = call(project, "scripts/check", "--fix")
        assert result.returncode == 0
        assert self.calls(result) == ["ruff check --fix", "ruff format", "mypy", "lint-imports"]

    @pytest.mark.parametrize(
        ("broken", "named"), [("ruff", "format, lint"), ("mypy", "types"), ("lint-imports", "import rules")]
    )
    def test_continues_after_a_failure_and_names_it_last(self, project: Path, broken: str, named: str) -> None:
        result = call(project, "scripts/check", FAKE_BROKEN=broken)
        assert result.returncode == 1
        assert self.calls(result) == ["ruff format --check", "ruff check", "mypy", "lint-imports"]
        assert result.stderr == f"scripts/check: failed: {named}\n"


class TestOracle:
    VENV = ".venv/bin/python -m venv --clear .venv-opencv4"
    INSTALL = ".venv-opencv4/bin/python -m pip install --only-binary :all: opencv-python-headless>=4.8,<5"
    WRITE = ".venv/bin/python scripts/oracle_write.py CASES"
    COMPARE = ".venv-opencv4/bin/python scripts/oracle_compare.py CASES"

    @pytest.fixture
    def fake(self, project: Path) -> dict[str, str]:
        write_program(project / "scripts/setup", "#!/usr/bin/env bash\n")
        write_program(project / ".venv/bin/python", FAKE_ORACLE_PYTHON)
        (project / "scratch").mkdir()
        return {"FAKE_LOG": str(project / "log"), "TMPDIR": str(project / "scratch")}

    def steps(self, project: Path) -> list[str]:
        """Return what was run since the last call, but for the question whether OpenCV is there."""
        log = project / "log"
        lines = [re.sub(rf"{project}/scratch/\S+", "CASES", line) for line in log.read_text().splitlines()]
        log.unlink()
        return [line for line in lines if not line.endswith("-c import cv2")]

    def test_makes_its_venv_once_and_leaves_no_cases_behind(self, project: Path, fake: dict[str, str]) -> None:
        assert call(project, "scripts/oracle", **fake).returncode == 0
        assert self.steps(project) == [self.VENV, self.INSTALL, self.WRITE, self.COMPARE]
        second = call(project, "scripts/oracle", **fake)
        assert (second.returncode, second.stderr) == (0, "")
        assert self.steps(project) == [self.WRITE, self.COMPARE]
        assert not list((project / "scratch").iterdir())

    def test_skips_aloud_what_pip_cannot_install_and_tries_again(self, project: Path, fake: dict[str, str]) -> None:
        result = call(project, "scripts/oracle", **fake, FAKE_PIP_FAILS="1")
        assert (result.returncode, result.stdout) == (0, "")
        assert result.stderr.splitlines()[-1].startswith(
            "scripts/oracle: SKIPPED: pip could not install opencv-python-headless>=4.8,<5, so nothing was compared; "
        )
        assert self.steps(project) == [self.VENV, self.INSTALL]
        assert call(project, "scripts/oracle", **fake).returncode == 0
        assert self.steps(project) == [self.VENV, self.INSTALL, self.WRITE, self.COMPARE]

    def test_fails_where_a_network_does(self, project: Path, fake: dict[str, str]) -> None:
        assert call(project, "scripts/oracle", **fake, FAKE_GAP="1").returncode == 1
        assert not list((project / "scratch").iterdir())

    @pytest.mark.parametrize(
        ("found", "verdict"),
        [
            ([[1.0, 2.0], [3.0, 4.0]], "agrees"),
            ([[1.0, 2.0], [3.0, 4.0009]], "agrees"),
            ([[1.0, 2.0], [3.0, 4.0011]], "FAILS"),
            ([[1.0, 2.0], [3.0, float("nan")]], "FAILS"),
            ([[1.0], [3.0]], "FAILS"),
        ],
    )
    def test_judges_by_the_largest_difference(self, found: list[list[float]], verdict: str) -> None:
        judge = runpy.run_path(str(ROOT / "scripts/oracle_compare.py"))["judge"]
        expected = np.array([[1.0, 2.0], [3.0, 4.0]])
        assert judge({"conv_1": expected}, {"conv_1": np.array(found)})[0] == verdict

    def test_does_not_believe_outputs_that_hardly_depend_on_the_image(self) -> None:
        judge = runpy.run_path(str(ROOT / "scripts/oracle_compare.py"))["judge"]
        outputs = {"conv_1": np.array([[1.0, 2.0], [1.0, 2.01]])}
        assert judge(outputs, outputs)[0] == "FAILS"


class TestVersions:
    @pytest.fixture
    def fake(self, project: Path) -> dict[str, str]:
        write_program(project / "python", FAKE_VERSIONS_PYTHON)
        write_program(project / "tool", FAKE_VERSIONS_TOOL)
        (project / "scratch").mkdir()
        paths = {"FAKE_LOG": "log", "FAKE_TOOL": "tool", "TMPDIR": "scratch"}
        return {name: str(project / path) for name, path in paths.items()}

    def run(self, project: Path, fake: dict[str, str], *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return call(project, "scripts/versions", str(project / "python"), *words, **fake, **more)

    def test_lowest_installs_the_wheel_with_the_lower_bounds_and_tests_no_checkout(
        self, project: Path, fake: dict[str, str]
    ) -> None:
        result = self.run(project, fake, "lowest", "-k", "a b")
        assert result.returncode == 0, result.stderr
        log = (project / "log").read_text()
        assert re.search(r"-m pip install --constraint \S+ \S+/yolo_prune-1-py3-none-any\.whl\[test\]\n", log)
        assert (project / "log.constraints").read_text() == "torch==2.9\n"
        commands = re.findall(r"^yoloprune (\w+)", log, re.MULTILINE)
        assert {"data", "train", "prune", "finetune", "bench", "detect", "export"} <= set(commands)
        assert "pytest -n auto -m not checkout -W ignore::DeprecationWarning -k a b\n" in log
        assert (project / "log.tested").read_text() == "kept\n"
        assert not list((project / "scratch").iterdir())

    def test_newest_has_no_constraints_and_takes_extras(self, project: Path, fake: dict[str, str]) -> None:
        result = self.run(project, fake, "newest", "--extras", "export,ncnn", "tests/cli")
        assert result.returncode == 0, result.stderr
        log = (project / "log").read_text()
        assert ".whl[test,export,ncnn]\n" in log
        assert (project / "log.constraints").read_text() == ""
        assert "pytest -n auto -m not checkout tests/cli\n" in log

    @pytest.mark.parametrize("broken", ["pytest", "yoloprune"])
    def test_fails_where_a_part_does(self, project: Path, fake: dict[str, str], broken: str) -> None:
        result = self.run(project, fake, "newest", FAKE_BROKEN=broken)
        assert result.returncode != 0
        assert "all is well" not in result.stderr
        assert not list((project / "scratch").iterdir())

    def test_says_in_one_line_what_is_no_python(self, project: Path) -> None:
        result = call(project, "scripts/versions", "/bin/false", "newest")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_ci_tries_other_versions_only_when_asked(project: Path) -> None:
    for name in ("check", "test", "oracle", "versions"):
        write_program(project / "scripts" / name, FAKE_TOOL)
    assert "versions python" not in call(project, ".ci/run").stdout
    said = [line for line in call(project, ".ci/run", "--versions").stdout.splitlines() if ":" not in line]
    assert said[-2:] == ["versions python3.10 lowest", "versions python3.13 newest"]


def test_ci_runs_every_part_even_when_one_fails(project: Path) -> None:
    parts = ["check", "test", "oracle"]
    for name in parts:
        write_program(project / "scripts" / name, FAKE_TOOL)
    assert call(project, ".ci/run", YOLO_PRUNE_CHROMIUM="required").returncode == 0
    for broken in parts:
        result = call(project, ".ci/run", FAKE_BROKEN=broken, YOLO_PRUNE_CHROMIUM="required")
        assert result.returncode == 1
        assert [line.strip() for line in result.stdout.splitlines() if ":" not in line] == parts
        assert result.stderr == f".ci/run: failed: scripts/{broken}\n"


FAKE_APT = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_LOG"
[[ $1 == update || -z ${FAKE_APT_FAILS-} ]] && cp "$0" "$(dirname "$0")/chromium"
"""
"""Installs a browser beside itself."""


@pytest.mark.parametrize(("user", "fails", "said"), [("0", "", "required"), ("0", "1", ""), ("1000", "", "")])
def test_ci_installs_a_browser_where_it_can(project: Path, user: str, fails: str, said: str) -> None:
    for name in ("check", "test", "oracle"):
        write_program(project / "scripts" / name, '#!/usr/bin/env bash\necho "chromium=${YOLO_PRUNE_CHROMIUM-}"\n')
    tools = project / "tools"
    for name in ("bash", "env", "dirname", "cp"):
        tools.mkdir(exist_ok=True)
        (tools / name).symlink_to(shutil.which(name) or pytest.skip(f"there is no {name}"))
    write_program(tools / "id", f"#!/usr/bin/env bash\necho {user}\n")
    text = FAKE_APT if not fails else FAKE_APT.replace("[[ $1 == update", "[[ $1 == never")
    write_program(tools / "apt-get", text)
    log = project / "log"
    result = call(project, ".ci/run", PATH=str(tools), FAKE_LOG=str(log), FAKE_APT_FAILS=fails, YOLO_PRUNE_CHROMIUM="")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count(f"chromium={said}\n") == 3
    assert ("the tests in a browser are skipped" in result.stdout) == (not said)
    assert log.exists() == (user == "0")


@pytest.mark.parametrize(
    ("name", "program", "expected"),
    [
        ("scripts/test", "python", "python -m pytest -k a b"),
        ("scripts/demo", "yoloprune", "yoloprune run configs/demo.yaml -k a b"),
    ],
)
def test_arguments_and_exit_code_pass_through(project: Path, name: str, program: str, expected: str) -> None:
    write_program(project / "scripts/setup", "#!/usr/bin/env bash\n")
    write_program(project / ".venv/bin" / program, FAKE_TOOL)
    result = call(project, name, "-k", "a b", FAKE_BROKEN=program)
    assert (result.returncode, result.stdout.strip()) == (1, expected)
