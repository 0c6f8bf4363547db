"""The programs of this folder run as a user runs them, and a type checker knows what they may and may not do."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name != Path(__file__).name)
WRONG = Path(__file__).with_name("wrong.py")


@pytest.fixture(autouse=True)
def programs(tmp_path: Path) -> Path:
    """The programs, in the folder where scripts run."""
    for path in PROGRAMS:
        shutil.copy(path, tmp_path)
    return tmp_path


def test_a_typed_client_asks_in_another_interpreter(script: Any) -> None:
    server = script.start("p01_hello.py", stderr=subprocess.PIPE)
    client = script.python("p02_client.py")
    server.send_signal(signal.SIGINT)
    assert (server.communicate(timeout=10)[1], server.returncode) == ("", 0)
    *lines, last = client.out.splitlines()
    assert lines == ["hello, client", "hello, again", "hello, world"]
    assert last.startswith("hello, there [('greeter', 'ipc://")
    assert client.err == ""


def test_a_web_application_embeds_nodes(script: Any) -> None:
    result = script.python("p03_web.py")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"{{'visitor': {n}, 'bytes': 64}}" for n in (1, 2, 3)]


def test_a_chain_of_calls_shows_the_error_of_its_end(script: Any) -> None:
    result = script.python("p07_chain.py")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("3.0\n'gold' raised in KeyError: 'gold' (raised in price of node 'prices')")
    assert 'return {"tea": 2.5}[item]' in result.out


def test_parameters_and_the_graph_are_followed_from_anywhere(script: Any) -> None:
    result = script.python("p04_oven.py")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == ["Oven [0, 180.0, None, 60.0]", "True", "210.0 200.0", "['oven'] None"]


def test_nodes_are_wired_by_topics(script: Any) -> None:
    result = script.python("p04_robot.py")
    assert (result.code, result.err) == (0, "")
    speeds = [float(line) for line in result.out.splitlines()]
    assert speeds[-1] < 0.001
    assert all(0 <= speed < 1 for speed in speeds)


def test_images_pass_through_three_processes(script: Any) -> None:
    process = script.start("p05_images.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    means = [float(process.stdout.readline()) for _ in range(3)]
    assert all(100 < mean < 150 for mean in means)  # the differences of bytes go round: any is as likely
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=10)[1]
    assert err.splitlines()[-1] == "KeyboardInterrupt"


def test_lines_are_streamed_as_they_are_written_and_relayed_to_whoever_listens(script: Any) -> None:
    log = script.folder / "service.log"
    log.write_text("INFO a\nERROR b\n")
    listen = ("import p08_logs\nfor alert in p08_logs.alerts.subscribe(history=1): print(alert, end='', flush=True)")
    process = script.start("p08_logs.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    listener = script.start("-c", listen, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with log.open("a") as file:
        while not select.select([listener.stdout], [], [], 0.05)[0]:
            file.write("INFO c\nERROR d\n")
            file.flush()
    assert listener.stdout.readline() in ("ERROR b\n", "ERROR d\n")  # the first, where it was there before it
    asked = script.python("-c", "import p08_logs; print(p08_logs.first_errors('service.log', 2))")
    assert (asked.out, asked.err) == ("['ERROR b\\n', 'ERROR d\\n']\n", "")
    for each in (process, listener):
        each.send_signal(signal.SIGINT)
        assert each.communicate(timeout=10)[1].splitlines()[-1] == "KeyboardInterrupt"


def test_a_long_job_shows_its_progress(script: Any) -> None:
    result = script.python("p10_job.py")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [*(f"{done}%" for done in range(101)), "104728"]


def test_a_users_tests_run(script: Any) -> None:
    result = script.python("-m", "pytest", "-q", "-p", "pyzmp.testing", "-p", "no:cacheprovider", "p09_shop.py")
    assert "5 passed" in result.out, result.out + result.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_application_runs_until_it_is_told_to_stop(script: Any, number: int) -> None:
    process = script.start("p11_app.py", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ask = ("import pyzmp; factor = pyzmp.discover('workers/factor', 10, 4); "
           "print(pyzmp.discover('robot/turned')(), len(pyzmp.services['hello']), factor(6))")
    asked = script.python("-c", ask, env={"PYZMP_DOMAIN": "robot-7"})
    assert re.fullmatch(r"\d+ 2 \[1, 2, 3, 6\]\n", asked.out), asked.err
    process.send_signal(number)
    assert (process.communicate(timeout=10)[0], process.returncode) == ("", 0)


# -- types --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says of the programs."""
    pytest.importorskip("mypy")
    cache = str(tmp_path_factory.mktemp("mypy"))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"),
               "--cache-dir", cache, "--hide-error-context", "--no-pretty", *(path.name for path in PROGRAMS)]
    done = subprocess.run(command, cwd=WRONG.parent, env={**os.environ, "MYPYPATH": f"{ROOT}:."}, capture_output=True,
                          text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.timeout(300)
def test_the_programs_type_check(checked: list[str]) -> None:
    assert not [line for line in checked if not line.startswith(("wrong.py", "Found "))]


@pytest.mark.timeout(300)
def test_wrong_programs_do_not(checked: list[str]) -> None:
    found = {(int(number), code) for number, code in re.findall(r"^wrong\.py:(\d+): error: .*\[([\w-]+)\]$",
                                                               "\n".join(checked), re.MULTILINE)}
    expected = {(number, code) for number, line in enumerate(WRONG.read_text().splitlines(), 1)
                for code in re.findall(r"  # ([\w-]+)$", line)}
    assert found == expected


# -- however a program is started ---------------------------------------------------------------------------------

PROGRAM = """\
import pyzmp
FACTOR = 3
class Triple(pyzmp.Node):
    @pyzmp.service
    def triple(self, n: int) -> int:
        return FACTOR * n

with Triple("triple") as node:
    print(Triple.triple(14), pyzmp.discover("triple")(1))

print(node.exitcode)
"""
PRINTED = "42 3\n0\n"


def test_an_unguarded_script_starts_nodes(script: Any) -> None:
    result = script(PROGRAM)
    assert (result.code, result.out, result.err) == (0, PRINTED, "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_does_so_by_every_start_method(script: Any, method: str) -> None:
    result = script(PROGRAM, env={"PYZMP_START_METHOD": method}, strict=method != "fork")
    assert (result.code, result.out, result.err) == (0, PRINTED, "")


def test_a_program_on_the_command_line_starts_nodes(script: Any) -> None:
    result = script.python("-c", PROGRAM)
    assert (result.code, result.out, result.err) == (0, PRINTED, "")


def test_a_module_run_as_a_program_starts_nodes(script: Any) -> None:
    (script.folder / "module.py").write_text(PROGRAM)
    result = script.python("-m", "module")
    assert (result.code, result.out, result.err) == (0, PRINTED, "")


@pytest.mark.parametrize("options", [(), ("-i",)])
def test_a_session_starts_nodes(script: Any, options: tuple[str, ...]) -> None:
    result = script.python(*options, stdin=PROGRAM)
    assert (result.code, result.out.replace(">>> ", "").replace("... ", "")) == (0, PRINTED)
    assert "Error" not in result.err


def test_a_test_starts_nodes(script: Any) -> None:
    (script.folder / "test_it.py").write_text(
        PROGRAM[:PROGRAM.index("with")] + "def test_it(pyzmp_domain: str) -> None:\n"
        "    with Triple('triple') as node:\n        assert Triple.triple(14) == 42\n")
    result = script.python("-m", "pytest", "-q", "-p", "pyzmp.testing", "-p", "no:cacheprovider", "test_it.py")
    assert "1 passed" in result.out, result.out + result.err
