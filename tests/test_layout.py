"""The shape of the package, read from its source and never imported.

Each check takes the folder of a package and yields one line for everything that it finds, so that the same checks
can be shown to find what is planted in a folder made up for it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyzmp"

# The rooms, lowest first; a module imports from rows above its own line here and from its own room.
ROWS = [
    {"exceptions", "version"},
    {"protocol"},
    {"launchers"},
    {"transport", "coprocess"},
    {"registry"},
    {"loopthread"},
    {"home", "asking", "gathering"},
    {"publisher"},
    {"publishing", "sessions", "subscribing"},
    {"settings"},
    {"here"},
    {"runtime"},
    {"program"},
    {"channels"},
    {"guest"},
    {"pending"},
    {"serving"},
    {"lone", "several"},
    {"host"},
    {"life"},
    {"node"},
    {"together"},
    {"application", "group", "recording", "testing"},
    {"flow", "selftest"},
    {"bench"},
    {"cli"},
]
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
FRONT = {"__init__.py", "__main__.py", "typing.py"}  # the public names, and python -m pyzmp: above every row

# Who may import what only few may.  A room, or a module as "room/module".
OWNERS = {
    "zmq": {"transport"},
    "multiprocessing": {"launchers"},
    "subprocess": {"registry/domain", "selftest", "testing"},
    "rich": {"cli"},
    "click": {"cli"},
    "tornado": {"registry/etcd"},
    "pickle": {"launchers"},
    "cloudpickle": {"launchers"},
}

# The protocol is told what time it is and what arrived; it asks nobody.
NOT_IN_PROTOCOL = {
    "zmq", "socket", "selectors", "select", "ssl", "threading", "_thread", "multiprocessing", "concurrent", "queue",
    "subprocess", "signal", "asyncio", "tornado", "time", "sched", "random", "secrets", "os", "pathlib", "shutil",
    "tempfile", "fcntl",
}
PURE = {"pathlib.PurePath"}  # a value in spite of where it lives
NOT_CALLED_IN_PROTOCOL = {
    "open", "print", "input", "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "uuid1", "uuid4",
    "uuid.uuid1", "uuid.uuid4", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today",
}

# What a module may make when it is imported: values that nobody changes.
CONSTANT = {
    "getLogger", "TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "ContextVar", "namedtuple", "NamedTuple",
    "frozenset", "tuple", "object", "MappingProxyType", "Struct", "compile", "Encoder", "Decoder", "encode", "decode",
    "float", "int", "bytes", "range", "type", "local", "Path", "partial", "attrgetter", "itemgetter", "min", "max",
    "len", "get_type_hints", "timedelta", "sum", "version", "find_spec",
    "Services",  # the registry seen as a mapping; it holds nothing itself
}
READ_ONLY = ("Mapping", "Sequence", "Collection", "Iterable", "AbstractSet")  # then the type checker keeps it so
STATE = {
    # What a process has one of, rebuilt after a fork:
    "runtime.py",  # its runtime
    "launchers/base.py",  # the children that it ends when it exits
    "launchers/forkserver.py",  # the process that its children are forked from
}

LINES = 400


def modules(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def room(package: Path, path: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


@functools.cache  # each check reads them all
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def place(package: Path, path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(package)}:{node.lineno}"  # type: ignore[attr-defined]


def imports(package: Path, path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The absolute dotted name of every import of *path*: late ones, and those for type checkers only, too."""
    inside = (package.name, *path.relative_to(package).parts[:-1])
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = inside[:len(inside) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{stem}.{alias.name}", node) for alias in node.names)


def unknown_rooms(package: Path) -> Iterator[str]:
    for path in modules(package):
        if room(package, path) not in RANK and path.name not in FRONT:
            yield f"{path.relative_to(package)} is in no row of the table"


def upward_imports(package: Path) -> Iterator[str]:
    for path in modules(package):
        mine = room(package, path)
        rank = len(ROWS) if path.parent == package and path.name in FRONT else RANK.get(mine, -1)
        for name, node in imports(package, path):
            head, _, rest = f"{name}.".partition(".")
            target = rest.partition(".")[0]
            # The package root ranks above everything, so nobody inside imports it.
            if head == package.name and target != mine and RANK.get(target, len(ROWS)) >= rank:
                yield f"{place(package, path, node)} imports {name}"


def impure_protocol(package: Path) -> Iterator[str]:
    for path in modules(package / "protocol"):
        for name, node in imports(package, path):
            if name not in PURE and (name.split(".")[0] in NOT_IN_PROTOCOL or name in NOT_CALLED_IN_PROTOCOL):
                yield f"{place(package, path, node)} imports {name}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in NOT_CALLED_IN_PROTOCOL:
                yield f"{place(package, path, node)} calls {called}()"


def imports_of_others(package: Path) -> Iterator[str]:
    for path in modules(package):
        module = path.relative_to(package).with_suffix("").as_posix()
        for name, node in imports(package, path):
            owners = OWNERS.get(name.split(".")[0])
            if owners is not None and not {room(package, path), module} & owners:
                yield f"{place(package, path, node)} imports {name}; only {', '.join(sorted(owners))} may"


def mutable_state(package: Path) -> Iterator[str]:
    makers = CONSTANT | set(_frozen(package))
    for path in modules(package):
        if path.relative_to(package).as_posix() in STATE:
            continue
        for node in _at_import(tree(path).body):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and not _constant(node, makers):
                yield f"{place(package, path, node)} {ast.unparse(node).splitlines()[0]}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Global):
                yield f"{place(package, path, node)} {ast.unparse(node)}"


def _frozen(package: Path) -> Iterator[str]:
    """The classes of the package whose instances nobody can change."""
    for path in modules(package):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                said = [*node.keywords, *(key for made in node.decorator_list for key in getattr(made, "keywords", ()))]
                if any(key.arg == "frozen" and ast.unparse(key.value) == "True" for key in said):
                    yield node.name


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported, those under if, try and with included."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _at_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from _at_import(handler.body)


def _constant(node: ast.Assign | ast.AnnAssign, makers: set[str]) -> bool:
    names = [ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]
    if names == ["__all__"]:
        return True
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).rpartition("Final[")[2].startswith(READ_ONLY):
        return True
    value = node.value
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in makers
    return not isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))


def long_modules(package: Path) -> Iterator[str]:
    for path in modules(package):
        if (count := len(path.read_text().splitlines())) > LINES:
            yield f"{path.relative_to(package)} has {count} lines; {LINES} is the limit"


def untested_modules(package: Path) -> Iterator[str]:
    """Modules without a test file of the same place and name.  The version's is the packaging test."""
    for path in modules(package):
        mirror = Path(path.relative_to(package).parent, f"test_{path.name}")
        if path.name not in {*FRONT, "version.py"} and not (package.parent / "tests" / mirror).exists():
            yield f"{path.relative_to(package)} has no tests/{mirror.as_posix()}"


CHECKS = [unknown_rooms, upward_imports, impure_protocol, imports_of_others, mutable_state, long_modules,
          untested_modules]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_its_shape(check: Callable[[Path], Iterator[str]]) -> None:
    assert len(modules(PACKAGE)) > 5
    found = list(check(PACKAGE))
    assert not found, "\n" + "\n".join(found)


# -- the checks find what is planted -------------------------------------------------------------------------------

CLEAN = {
    "pyzmp/__init__.py": "from pyzmp.node import Node\n__all__ = ['Node']\n",
    "pyzmp/__main__.py": "from pyzmp.cli import main\nmain()\n",
    "pyzmp/version.py": "",
    "pyzmp/exceptions.py": "class E(Exception): ...\n",
    "pyzmp/node.py": "import logging\nfrom pyzmp import exceptions\nfrom pyzmp.transport.link import Link\n"
                     "log = logging.getLogger('pyzmp.node')\nT: Mapping[str, int] = {'a': 1}\nN = (1, 2)\n"
                     "@dataclass(frozen=True)\nclass Value: ...\nclass Other(Struct, frozen=True): ...\n"
                     "V = Value()\nO = Other()\n",
    "pyzmp/cli/__init__.py": "import click\nfrom pyzmp.cli import other\nfrom pyzmp.node import Node\n",
    "pyzmp/cli/other.py": "",
    "pyzmp/transport/link.py": "import zmq\nfrom pyzmp.protocol import calls\nfrom .context import Context\n",
    "pyzmp/transport/context.py": "class Context:\n    kinds = {}\n",
    "pyzmp/protocol/calls.py": "from datetime import datetime\nfrom pyzmp.exceptions import E\n",
    "tests/test_exceptions.py": "",
    "tests/test_node.py": "",
    "tests/cli/test_other.py": "",
    "tests/transport/test_link.py": "",
    "tests/transport/test_context.py": "",
    "tests/protocol/test_calls.py": "",
}

PLANTED = [
    (unknown_rooms, "pyzmp/utils.py", "", "utils.py is in no row"),
    (unknown_rooms, "pyzmp/helpers/a.py", "", "helpers/a.py is in no row"),
    (upward_imports, "pyzmp/protocol/calls.py", "from pyzmp.transport import link", "protocol/calls.py:1"),
    (upward_imports, "pyzmp/protocol/calls.py", "\nfrom ..node import Node", "protocol/calls.py:2"),
    (upward_imports, "pyzmp/protocol/calls.py", "from .. import node", "imports pyzmp.node"),
    (upward_imports, "pyzmp/protocol/calls.py", "def f():\n    import pyzmp.node", "protocol/calls.py:2"),
    (upward_imports, "pyzmp/exceptions.py", "if TYPE_CHECKING:\n    from pyzmp.node import Node", "exceptions.py:2"),
    (upward_imports, "pyzmp/exceptions.py", "from pyzmp import version", "imports pyzmp.version"),
    (upward_imports, "pyzmp/node.py", "import pyzmp", "imports pyzmp"),
    (upward_imports, "pyzmp/node.py", "from pyzmp import Node", "imports pyzmp.Node"),
    (upward_imports, "pyzmp/cli/__init__.py", "from pyzmp import Node", "imports pyzmp.Node"),
    (impure_protocol, "pyzmp/protocol/calls.py", "import time", "imports time"),
    (impure_protocol, "pyzmp/protocol/calls.py", "def f():\n    from os.path import join", "imports os.path.join"),
    (impure_protocol, "pyzmp/protocol/calls.py", "from uuid import uuid4", "imports uuid.uuid4"),
    (impure_protocol, "pyzmp/protocol/calls.py", "a = datetime.now()", "calls datetime.now()"),
    (impure_protocol, "pyzmp/protocol/calls.py", "def f(): return open('x')", "calls open()"),
    (imports_of_others, "pyzmp/node.py", "import zmq.asyncio", "imports zmq.asyncio; only transport may"),
    (imports_of_others, "pyzmp/node.py", "from multiprocessing import Process", "only launchers may"),
    (imports_of_others, "pyzmp/registry/server.py", "import subprocess", "only registry/domain, selftest, testing may"),
    (mutable_state, "pyzmp/node.py", "nodes = []", "node.py:1 nodes = []"),
    (mutable_state, "pyzmp/node.py", "nodes: dict[str, int] = {}", "node.py:1 nodes"),
    (mutable_state, "pyzmp/node.py", "@dataclass\nclass State: ...\nnow = State()", "node.py:3 now = State()"),
    (mutable_state, "pyzmp/node.py", "nodes = {n: 1 for n in range(3)}", "node.py:1"),
    (mutable_state, "pyzmp/node.py", "try:\n    lock = Lock()\nfinally:\n    pass", "node.py:2 lock = Lock()"),
    (mutable_state, "pyzmp/node.py", "x = None\ndef f():\n    global x\n    x = 1", "node.py:3 global x"),
    (long_modules, "pyzmp/node.py", "\n" * 401, "node.py has 401 lines"),
    (untested_modules, "pyzmp/transport/memory.py", "", "transport/memory.py has no tests/transport/test_memory.py"),
]


def planted(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    return folder / "pyzmp"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_finds_nothing_in_a_clean_package(check: Callable[[Path], Iterator[str]], tmp_path: Path) -> None:
    assert list(check(planted(tmp_path, CLEAN))) == []


@pytest.mark.parametrize(("check", "name", "source", "line"), PLANTED)
def test_a_check_finds_what_is_planted(check: Callable[[Path], Iterator[str]], name: str, source: str, line: str,
                                       tmp_path: Path) -> None:
    found = list(check(planted(tmp_path, CLEAN | {name: source})))
    assert len(found) == 1
    assert line in found[0]


def test_a_missing_test_file_is_found(tmp_path: Path) -> None:
    files = {name: source for name, source in CLEAN.items() if name != "tests/test_node.py"}
    assert list(untested_modules(planted(tmp_path, files))) == ["node.py has no tests/test_node.py"]


def test_state_is_kept_where_the_table_allows_it(tmp_path: Path) -> None:
    assert list(mutable_state(planted(tmp_path, CLEAN | {"pyzmp/runtime.py": "made = []"}))) == []
