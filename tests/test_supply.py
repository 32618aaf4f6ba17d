"""What the package is made of is named to the byte: actions by commit, packages by hash; and it is made alike twice."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_its_actions_by_commit_and_can_only_read(path: Path) -> None:
    text = path.read_text()
    used = re.findall(r"uses: *(\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{action} does not say its version"
    assert text.count("permissions:") == 1
    assert re.search(r"^permissions:\n  contents: read\n\S", text, re.MULTILINE)
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


def test_every_locked_package_has_one_version_and_its_hashes() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", re.sub(r"(?m)^ *#.*\n", "", (ROOT / "requirements.lock").read_text()))
    packages = [block for block in blocks if block.strip()]
    assert len(packages) > 30
    for package in packages:
        assert re.match(r"[\w.-]+(\[[\w,]+\])?==\S+", package), package[:80]
        assert "--hash=sha256:" in package, package[:80]


def test_the_wheel_is_the_same_to_the_byte_wherever_and_whenever_it_is_made(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        folder = tmp_path / f"{number}" / "source"
        folder.mkdir(parents=True)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(ROOT / name, folder / name)
        shutil.copytree(ROOT / "pipeline", folder / "pipeline", copy_function=shutil.copyfile)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / f"wheel-{number}")]
        environment = {"SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": str(number), "PATH": ""}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=120)
        made.append(next((tmp_path / f"wheel-{number}").glob("*.whl")).read_bytes())
    assert made[0] == made[1]
