"""Every class that msgspec may decode is prepared when it is defined, because msgspec crashes if two threads
are the first to decode a class.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import backline

SOURCE = Path(backline.__file__).parent
#: Never decoded: they are structs because structs are quick to create or, for ONNX models, quick to define.
CREATED_ONLY = {"InferRequest", "Tensor", "InferResponse", "Rescheduled", "ModelFile", "SessionSettings"}
#: Four threads are the first to decode a class that contains another one, 100 times. Without the decorator,
#: the process crashes.
PROGRAM = """
import sys
from threading import Barrier, Thread

import msgspec
from backline.decodable import decodable

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


def structs(tree: ast.Module) -> Iterator[ast.ClassDef]:
    """Yields the classes of a module that derive from msgspec.Struct."""
    known = {"Struct"}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if bases & known:
                known.add(node.name)
                yield node


def test_every_struct_is_prepared_for_threads_when_it_is_defined() -> None:
    found = {
        f"{path.relative_to(SOURCE)}: {node.name}": [ast.unparse(given) for given in node.decorator_list]
        for path in SOURCE.rglob("*.py")
        for node in structs(ast.parse(path.read_text()))
        if node.name not in CREATED_ONLY
    }

    assert len(found) > 50
    assert [name for name, decorators in found.items() if "decodable" not in decorators] == []


def test_threads_that_are_the_first_to_decode_a_class_do_not_crash() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "decoded\n"), done.stderr
