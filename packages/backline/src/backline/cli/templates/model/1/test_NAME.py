from pathlib import Path
from runpy import run_path

Model = run_path(str(Path(__file__).with_name("model.py")))["Model"]


def test_known_words_have_a_tag() -> None:
    model = Model()
    model.load()

    assert model.predict("Backline serves") == {"Backline": "name", "serves": "verb"}
