from pathlib import Path
from runpy import run_path

Model = run_path(str(Path(__file__).with_name("model.py")))["Model"]


def test_every_word_is_a_response() -> None:
    assert list(Model().predict("one two")) == ["ONE", "TWO"]
