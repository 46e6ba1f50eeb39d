"""Documents are bounded before parsing: none takes more time or memory than its size allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.served_models import need
from backline.backends.yaml_document import read_yaml
from backline.engine.document_limits import MAX_DOCUMENT, check_size, check_toml
from backline_client.values.errors import InvalidArgument

DEEP = ".".join(["a"] * 2_000)


@pytest.mark.parametrize(
    "text",
    [
        f"{DEEP} = 1",
        f"x = 1\n[{DEEP}]",
        f"[[{DEEP}]]",
        f"x = {{ {DEEP} = 1 }}",
        " . ".join(['"a b"'] * 40) + " = 1",
        ".".join(["'a'", "b", '"c"'] * 20) + " = 1",
        "x = '''\n''' # ...\n" + DEEP + " = 1",
    ],
)
def test_a_key_with_too_many_parts_is_refused_before_parsing(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"m.toml:\d+: a key has more than 32 parts"):
        check_toml(text, "m.toml")


@pytest.mark.parametrize(
    "text",
    [
        f"x = '{DEEP}'",
        f'x = "{DEEP} \\" {DEEP}"',
        f'x = """\n{DEEP}\n"" {DEEP}\\""""',
        f"# {DEEP}",
        "x = [" + "1.5, " * 100 + "]",
        "a.b = 1\n" * 100,
    ],
)
def test_dots_outside_keys_do_not_count_as_parts(text: str) -> None:
    check_toml(text, "m.toml")


@pytest.mark.parametrize("piece", ['"\\', '"""', "'", "a.", ".", "a", '\\"', "#"])
def test_the_check_takes_linear_time(piece: str) -> None:
    text = "." * 40 + piece * (MAX_DOCUMENT // len(piece) - 40)
    check = (
        "import sys; from backline.engine.document_limits import check_toml; "
        "check_toml(sys.stdin.read(), 'm')"
    )
    subprocess.run(
        [sys.executable, "-c", check], input=text, text=True, timeout=60, capture_output=True, check=False
    )


def test_a_document_over_the_size_limit_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="the document has 1,048,577 bytes, more than"):
        check_size("x" * (MAX_DOCUMENT + 1), "m.toml")


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new}\n  <<: [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "more than 50,000 values, with each alias counted"),
        (MERGES, "more than 50,000 values, with each alias counted"),
        ("a: &a [*a]", "an alias that contains itself"),
        ("[" * 200 + "]" * 200, "nested too deep"),
        ("[" * 100_000, "nested too deep"),
        ("a: " + "9:" * 1_000 + "9", "a number of more than 100 characters"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: [", "cannot be read"),
        ("x" * (MAX_DOCUMENT + 1), "more than the limit of"),
    ],
)
def test_yaml_that_expands_through_aliases_is_refused(text: str, message: str) -> None:
    need("yaml")
    with pytest.raises(InvalidArgument, match=message):
        read_yaml(text.encode(), "MLmodel", what="", extra="")


def test_yaml_with_a_few_aliases_is_accepted() -> None:
    need("yaml")
    read = read_yaml(
        b"a: &a {x: 1}\nb: {<<: *a, y: 2.5}\nc: [*a, 2020-01-01, yes]", "MLmodel", what="", extra=""
    )

    assert (read["b"], read["c"][0], read["c"][2]) == ({"x": 1, "y": 2.5}, {"x": 1}, True)


def test_a_key_that_is_slow_to_parse_does_not_delay_the_scan_of_other_models(tmp_path: Path) -> None:
    for name, text in (("evil", f"{'.'.join(['a'] * 50_000)} = 1"), ("good", "max_batch_size = 0")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").write_bytes(b"x")
        (tmp_path / name / "model.toml").write_text(text)
    scan = (
        "import sys; from pathlib import Path; from backline.backends.registry import FORMATS\n"
        "from backline.repository.local import LocalRepository\n"
        "for model in LocalRepository(Path(sys.argv[1]), formats=FORMATS).scan_now():"
        " print(model.name, model.problem)"
    )

    printed = subprocess.run(
        [sys.executable, "-c", scan, str(tmp_path)], timeout=60, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert printed[0].startswith("evil ")
    assert "a key has more than 32 parts" in printed[0]
    assert printed[1].strip() == "good"
