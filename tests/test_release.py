"""What is published: sdist and wheel and what they say of themselves, the citation, the Docker image, README's installation."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from paths import ROOT
from trove_classifiers import classifiers as known_classifiers

from yolo_prune.version import __version__

SHIPPED = ("yolo_prune", "configs", "tests", "docs", "scripts", "benchmarks", "docker", ".ci")
CACHES = ("__pycache__", ".hypothesis", ".pytest_cache", "*.egg-info")
pytestmark = pytest.mark.checkout
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Built:
    """What hatchling builds."""

    wheel: Path
    sdist: Path
    metadata: Message


def build(source: Path, out: Path) -> Built:
    code = f"import hatchling.build as b; print(b.build_wheel({str(out)!r}), b.build_sdist({str(out)!r}))"
    made = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    wheel, sdist = (out / name for name in made.stdout.split()[-2:])
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return Built(wheel, sdist, email.message_from_string(file.read(name).decode()))


def list_wheel(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as file:
        return set(file.namelist())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


class TestMetadata:
    def test_classifiers_are_known_and_true(self, built: Built) -> None:
        given = built.metadata.get_all("Classifier", [])
        assert set(given) <= set(known_classifiers)
        assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(given)
        pythons = [
            match[1] for one in given if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one))
        ]
        assert pythons == ["3.10", "3.11", "3.12", "3.13"]
        allowed = SpecifierSet(built.metadata["Requires-Python"])
        assert all(python in allowed for python in pythons)
        assert "3.9" not in allowed

    def test_it_has_a_licence_and_keywords(self, built: Built) -> None:
        assert (built.metadata["Name"], built.metadata["Version"]) == ("yolo-prune", __version__)
        assert (built.metadata["License-Expression"], built.metadata["License-File"]) == ("MIT", "LICENSE")
        assert {"pruning", "yolov3", "pytorch"} <= set(built.metadata["Keywords"].split(","))
        assert not [one for one in built.metadata.get_all("Classifier", []) if one.startswith("License ::")]

    def test_every_package_that_it_needs_has_one_lower_bound(self, built: Built) -> None:
        for text in built.metadata.get_all("Requires-Dist", []):
            one = Requirement(text)
            if not one.name.startswith("types-"):
                assert [part.operator for part in one.specifier].count(">=") == 1, text

    def test_every_package_that_is_imported_is_needed(self, built: Built) -> None:
        needed = {
            Requirement(text).name.lower().replace("-", "_") for text in built.metadata.get_all("Requires-Dist", [])
        }
        needed |= {
            {"opencv_python": "cv2", "pillow": "pil", "pyyaml": "yaml", "vl_convert_python": "vl_convert"}.get(
                name, name
            )
            for name in needed
        }
        code = "\n".join(path.read_text() for path in (ROOT / "yolo_prune").rglob("*.py"))
        imported = {name.lower() for name in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)}
        assert imported - set(map(str.lower, sys.stdlib_module_names)) - needed - {"yolo_prune", "executorch"} == set()

    def test_the_description_leads_nowhere_relative(self, built: Built) -> None:
        text = built.metadata.get_payload()
        assert isinstance(text, str)
        assert built.metadata["Description-Content-Type"] == "text/markdown"
        tokens = MarkdownIt("commonmark").enable("table").parse(text)
        inline = [child for token in tokens if token.type == "inline" for child in token.children or ()]
        places = [
            str(child.attrs.get("href") or child.attrs.get("src"))
            for child in inline
            if child.type in ("link_open", "image")
        ]
        assert [place for place in places if not place.startswith(("https://", "#"))] == []
        assert "docs/pruning.md explains the choices" in text
        readme = (ROOT / "README.md").read_text()
        assert re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL) == re.findall(
            r"^```.*?^```", readme, re.MULTILINE | re.DOTALL
        )


class TestFiles:
    def test_the_wheel_has_the_package_with_its_configs_and_nothing_else(self, built: Built) -> None:
        names = list_wheel(built.wheel)
        assert {f"yolo_prune/configs/{path.name}" for path in (ROOT / "configs").iterdir()} <= names
        assert {"yolo_prune/py.typed", "yolo_prune/engines/sparse/kernel.cpp"} <= names
        tops = {name.partition("/")[0] for name in names}
        assert tops == {"yolo_prune", f"yolo_prune-{__version__}.dist-info"}

    def test_the_sdist_has_all_that_tests_need_and_no_caches(self, built: Built) -> None:
        with tarfile.open(built.sdist) as file:
            members = {member.name.partition("/")[2] for member in file if member.isfile()}
        files = {path.relative_to(ROOT) for name in SHIPPED for path in (ROOT / name).rglob("*") if path.is_file()}
        wanted = {
            str(path) for path in files if not any(fnmatch(part, cache) for part in path.parts for cache in CACHES)
        }
        assert wanted <= members
        single = {
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "CITATION.cff",
            "LICENSE",
            "data/README.md",
            ".dockerignore",
        }
        assert members - wanted == single | {"pyproject.toml", "PKG-INFO", ".gitignore"}

    def test_from_the_sdist_the_same_wheel_is_built(self, built: Built, tmp_path: Path) -> None:
        with tarfile.open(built.sdist) as file:
            for member in file:
                file.extract(member, tmp_path, set_attrs=False)
        (source,) = tmp_path.iterdir()
        again = build(source, tmp_path / "dist")
        assert list_wheel(again.wheel) == list_wheel(built.wheel)


def test_the_citation_is_of_this_version() -> None:
    cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format demands
    assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", __version__, "MIT")
    for work in cited["references"]:
        assert {"type", "title", "authors"} <= work.keys()


class TestDocker:
    @pytest.fixture
    def steps(self) -> list[tuple[str, str]]:
        text = (ROOT / "docker/Dockerfile").read_text().replace("\\\n", "")
        lines = [line.partition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return [(word, rest) for word, _, rest in lines]

    def list_copied(self, steps: list[tuple[str, str]]) -> list[str]:
        copies = [rest.split() for word, rest in steps if word == "COPY" and not rest.startswith("--from=")]
        return [name for words in copies for name in words[:-1]]

    def test_what_is_copied_is_there_and_not_ignored(self, steps: list[tuple[str, str]]) -> None:
        copied = self.list_copied(steps)
        assert "yolo_prune" in copied
        assert [name for name in copied if not (ROOT / name).exists()] == []
        rules = (ROOT / ".dockerignore").read_text().splitlines()
        assert rules[0] == "*"
        assert {f"!{name}" for name in copied} <= set(rules)

    def test_what_is_copied_is_all_that_the_wheel_is_built_from(
        self, steps: list[tuple[str, str]], built: Built, tmp_path: Path
    ) -> None:
        source = tmp_path / "src"
        source.mkdir()
        for name in self.list_copied(steps):
            path, skip = ROOT / name, shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / name, ignore=skip) if path.is_dir() else shutil.copy(path, source)
        assert list_wheel(build(source, tmp_path / "dist").wheel) == list_wheel(built.wheel)

    def test_stages_are_those_that_are_named_and_the_user_is_not_root(self, steps: list[tuple[str, str]]) -> None:
        made = {rest.split(" AS ")[1] for word, rest in steps if word == "FROM" and " AS " in rest}
        used = {rest.split(" AS ")[0] for word, rest in steps if word == "FROM"}
        used |= {match[1] for _, rest in steps if (match := re.match(r"--from=(\w+)", rest))}
        own = {name.replace("${DEVICE}", device) for name in used for device in ("cpu", "cuda") if ":" not in name}
        assert own == made
        last = max(index for index, (word, _) in enumerate(steps) if word == "FROM")
        assert [rest for word, rest in steps[last:] if word == "USER"] == ["yolo"]
        assert any(f"torch torchvision --index-url {CPU_INDEX}" in rest for word, rest in steps if word == "RUN")


def test_readme_installs_the_small_build_of_pytorch_first() -> None:
    section = (ROOT / "README.md").read_text().split("## Install\n")[1].split("\n## ")[0]
    commands = [line.partition("#")[0].strip() for line in section.splitlines() if line.startswith("$ ")]
    assert commands == [
        f"$ pip install torch torchvision --index-url {CPU_INDEX}",
        "$ pip install torch torchvision",
        "$ pip install .",
    ]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = {
        *re.findall(r"\]\((?!https?:)([^)#]+)", text),
        *re.findall(r"^\$ ((?:scripts|\.ci)/\w+)", text, re.MULTILINE),
    }
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
