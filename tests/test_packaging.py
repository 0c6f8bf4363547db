"""What is shipped is what the documentation says, and importing it starts nothing."""

from __future__ import annotations

import inspect
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import pyzmp
from pyzmp import exceptions
from pyzmp import typing as annotations
from pyzmp.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
ORIGINAL = {"Node", "CoProcess", "Service", "discover", "services", "current_node", "ServiceCallTimeout",
            "UnknownServiceException", "UnknownRequestTypeException", "UnknownResponseTypeException"}


def test_the_version_is_written_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pyzmp.version.__version__"}
    assert pyzmp.__version__ == __version__
    sources = [*(ROOT / "pyzmp").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "docs" / "conf.py", ROOT / "setup.py"]
    assert [path.name for path in sources if f'"{__version__}"' in path.read_text()] == ["version.py"]


def test_the_changelog_has_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0][0] == __version__
    assert all(re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", date) for _, date in headings)


def test_the_first_command_of_the_readme_installs_pyzmp_and_runs_it() -> None:
    first, _ = re.findall(r"^\$ (python3 .*)$", README, re.MULTILINE)
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/pyzmp"
    assert PROJECT["project"]["scripts"] == {"pyzmp": "pyzmp.cli:main"}


def test_the_second_command_of_the_readme_runs_the_tests_and_is_what_ci_runs() -> None:
    _, second = re.findall(r"^\$ (python3 .*)$", README, re.MULTILINE)
    assert second == "python3 -m venv .venv && .venv/bin/pip install -r dev-requirements.txt && .venv/bin/tox"
    ci = ROOT / ".ci" / "run"
    assert second in ci.read_text().splitlines()
    assert ci.stat().st_mode & 0o111


def test_the_set_up_is_said_before_anything_else() -> None:
    assert README.index("\n## Set up") < min(README.index("$ python3"), README.index("```python"))


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path, script: Any) -> None:
    pytest.importorskip("setuptools", minversion="77")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for path in [*(ROOT / "pyzmp").rglob("*.py"), ROOT / "pyzmp" / "py.typed"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    result = script("from setuptools.build_meta import build_wheel; build_wheel('.')", timeout=60, name="../build.py")
    assert result.code == 0, result.out + result.err
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pyzmp").rglob("*.py")} | {"pyzmp/py.typed"}
    info = f"pyzmp-{__version__}.dist-info"
    assert {name for name in names if not name.startswith(info)} == files
    assert f"{info}/licenses/LICENSE" in names
    assert "pyzmp = pyzmp.cli:main" in zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()


def test_the_public_names_are_few_and_all_there() -> None:
    assert set(pyzmp.__all__) >= ORIGINAL
    assert len(pyzmp.__all__) == len(set(pyzmp.__all__)) <= 30
    assert [name for name in pyzmp.__all__ if not hasattr(pyzmp, name)] == []


def test_every_public_name_is_in_the_reference() -> None:
    modules = {"exceptions", "channels", "flow", "recording", "typing"}
    documented = set(re.findall(r"\bpyzmp\.(\w+)", REFERENCE)) - modules
    assert documented == set(pyzmp.__all__)


def test_what_annotations_find_in_typing_is_in_the_reference_and_the_other_way_round() -> None:
    documented = set(re.findall(r"\bpyzmp\.typing\.(\w+)", REFERENCE))
    aliases = {"Event", "FullQueue"}  # of what is there
    assert documented | aliases == set(annotations.__all__)
    assert [name for name in annotations.__all__ if not hasattr(annotations, name)] == []


@pytest.mark.parametrize("name", pyzmp.__all__ if hasattr(pyzmp, "__all__") else [])
def test_every_public_name_says_what_it_promises(name: str) -> None:
    value = getattr(pyzmp, name)
    assert inspect.getdoc(value)
    members = inspect.getmembers(value, inspect.isroutine) if inspect.isclass(value) else []
    ours = [(member, f) for member, f in members if str(getattr(f, "__module__", "")).startswith("pyzmp")]
    assert [member for member, f in ours if not member.startswith("_") and not inspect.getdoc(f)] == []


def test_the_root_has_the_errors_that_calls_raise() -> None:
    raised = {"PyzmpError", "CallError", "CallTimeout", "UnknownService", "InvalidCall", "NodeDied", "RemoteError"}
    at_root = {name for name in pyzmp.__all__ if name in vars(exceptions)}
    assert at_root >= raised
    assert all(getattr(pyzmp, name) is getattr(exceptions, name) for name in at_root)


IMPORT = """
import json, multiprocessing, os, pathlib, sys, threading, zmq, msgspec, asyncio

def seen():
    files = [os.path.join(folder, name) for root in sys.argv[1:] for folder, below, names in os.walk(root)
             for name in below + names]
    return {"threads": len(threading.enumerate()), "tasks": len(os.listdir("/proc/self/task")),
            "children": pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
            "descriptors": sorted(os.listdir("/proc/self/fd")), "files": sorted(files),
            "forkserver": "multiprocessing.forkserver" in sys.modules and bool(
                sys.modules["multiprocessing.forkserver"]._forkserver._forkserver_pid)}

before = seen()
import pyzmp
print(json.dumps([before, seen(), sorted(sys.modules)]))
"""


def test_importing_starts_nothing(script: Any, domain: Path, tmp_path: Path) -> None:
    result = script(IMPORT, str(domain.parent), strict=True, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert (result.code, result.err) == (0, "")
    before, after, _ = json.loads(result.out)
    assert before == after
    assert before["descriptors"]


def test_importing_leaves_the_optional_packages_alone(script: Any) -> None:
    _, _, imported = json.loads(script(IMPORT).out)
    assert "pyzmp.node" in imported
    assert not {"tornado", "click", "rich", "numpy", "cloudpickle", "psutil", "setproctitle"} & set(imported)
