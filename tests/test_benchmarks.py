"""The benchmarks work: each runs in a tiny size, where its figures mean nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py")
                  if path.stem != "everything" and "__main__" in path.read_text("utf-8"))
TINY = {"PYZMP_BENCHMARK_QUICK": "1"}


def test_the_page_names_every_program() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert [name for name in PROGRAMS if f"| [`{name}.py`]({name}.py) |" not in page] == []


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_runs(name: str, script: Any, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    result = script.python(str(FOLDER / f"{name}.py"), timeout=90,
                           env={**TINY, "PYZMP_BENCHMARKS": str(lines), "PYTHONPATH": str(ROOT)})
    assert (result.code, result.err) == (0, ""), result.out + result.err
    for line in lines.read_text("utf-8").splitlines() if lines.exists() else ():
        comparison = json.loads(line)
        assert comparison["medians"].keys() | comparison["skipped"].keys()
        assert all(figure >= 0 for figure in comparison["medians"].values())


@pytest.mark.slow
def test_everything_writes_what_it_found(script: Any, tmp_path: Path) -> None:
    result = script.python(str(FOLDER / "everything.py"), "imports", "--into", str(tmp_path / "found"), timeout=60,
                           env={**TINY, "PYTHONPATH": str(ROOT)})
    assert result.code == 0, result.out + result.err
    found = json.loads((tmp_path / "found" / "latest.json").read_text("utf-8"))
    assert list(found["programs"]) == ["imports"]
    assert found["machine"]["cores"] == os.cpu_count()
    page = (tmp_path / "found" / "latest.md").read_text("utf-8")
    assert "## imports.py" in page


def test_rounds_alternate_and_targets_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("PYZMP_BENCHMARK_QUICK", raising=False)
    monkeypatch.setenv("PYZMP_BENCHMARKS", str(tmp_path / "lines"))
    import harness

    order: list[str] = []

    def candidate(name: str, figure: float) -> Any:
        return lambda: order.append(name) or figure
    try:
        medians = harness.compare("work", "s", {"raw": candidate("raw", 2.0), "pyzmp": candidate("pyzmp", 3.0),
                                                "gone": None, "why": "it is broken"}, rounds=2, target={"pyzmp": 1.4})
        harness.compare("more", "1/s", {"raw": lambda: 2.0, "pyzmp": lambda: 3.0}, rounds=1, better="more",
                        target={"pyzmp": 1.4})
    finally:
        del sys.modules["harness"]
    assert order == ["raw", "pyzmp", "pyzmp", "raw", "raw", "pyzmp"]
    assert medians == {"raw": 2.0, "pyzmp": 3.0}
    first, second = [json.loads(line) for line in (tmp_path / "lines").read_text("utf-8").splitlines()]
    assert first["ratios"] == {"raw": 1.0, "pyzmp": 1.5}
    assert first["targets"] == {"pyzmp": {"ratio": 1.4, "reached": False}}
    assert first["skipped"] == {"gone": "it is missing", "why": "it is broken"}
    assert second["targets"] == {"pyzmp": {"ratio": 1.4, "reached": True}}
    printed = capsys.readouterr().out
    assert "target 1.4: missed" in printed
    assert "target 1.4: reached" in printed
    assert "left out: it is broken" in printed
