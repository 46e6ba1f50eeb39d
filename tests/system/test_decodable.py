"""Every class that msgspec may decode is prepared when it is defined, because msgspec crashes if two threads
are the first to decode a class.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import backline
import backline_client

PACKAGES = [Path(package.__file__).parent for package in (backline, backline_client)]
TREES = [ast.parse(path.read_text()) for package in PACKAGES for path in package.rglob("*.py")]
#: The structs that can be changed and are never decoded.
CREATED_ONLY = {
    "InferResponse",
    "PredictPlan",
    "Rescheduled",
    "RpcPlan",
    "StoredTensor",
    "Tensor",
    "TraceSetting",
}
#: The functions that may get a frozen struct that is not prepared, because they do not decode it.
NOT_DECODING = {"isinstance", "field", "_filled", "Door", "TypeVar"}
#: Four threads are the first to decode a class that contains another one, 100 times. Without the decorator,
#: the process crashes.
PROGRAM = """
import sys
from threading import Barrier, Thread

import msgspec
from backline_client.values.decodable import decodable

sys.setswitchinterval(1e-6)
for _ in range(100):

    class Inner(msgspec.Struct):
        numbers: "list[int]" = []
        names: "dict[str, int]" = {}

    @decodable
    class Outer(msgspec.Struct):
        one: "Inner"
        many: "list[Inner]"

    together = Barrier(4)

    def decode():
        together.wait()
        for _ in range(3):
            msgspec.json.decode(b'{"one": {}, "many": [{}]}', type=Outer)

    threads = [Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("decoded")
"""


def structs() -> dict[str, ast.ClassDef]:
    """Returns the classes that derive from msgspec.Struct, by name."""
    classes = [node for tree in TREES for node in tree.body if isinstance(node, ast.ClassDef)]
    found: dict[str, ast.ClassDef] = {}
    while True:
        known = {"Struct", *found}
        more = {
            node.name: node
            for node in classes
            if known & {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
        }
        if len(more) == len(found):
            return found
        found = more


def unprepared() -> dict[str, ast.ClassDef]:
    return {
        name: node
        for name, node in structs().items()
        if "decodable" not in [ast.unparse(given) for given in node.decorator_list]
    }


def test_every_struct_that_can_be_changed_is_prepared_for_threads_when_it_is_defined() -> None:
    frozen = {
        name
        for name, node in unprepared().items()
        if any(each.arg == "frozen" and ast.unparse(each.value) == "True" for each in node.keywords)
    }

    assert len(structs()) - len(unprepared()) > 50
    assert unprepared().keys() - frozen == CREATED_ONLY


def test_no_function_decodes_a_struct_that_is_not_prepared() -> None:
    names = unprepared().keys()
    calls = [node for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Call)]
    decoded = {
        f"{ast.unparse(call.func)}({ast.unparse(given)})"
        for call in calls
        if ast.unparse(call.func) not in NOT_DECODING
        for given in (*call.args, *(each.value for each in call.keywords))
        if (isinstance(given, ast.Name) and given.id in names)
        or (
            isinstance(given, ast.Subscript)
            and names & {each.id for each in ast.walk(given.slice) if isinstance(each, ast.Name)}
        )
    }

    assert decoded == {"Tensor.__new__(Tensor)"}


def test_threads_that_are_the_first_to_decode_a_class_do_not_crash() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "decoded\n"), done.stderr
