from pathlib import Path
from runpy import run_path

import numpy as np

Model = run_path(str(Path(__file__).with_name("model.py")))["Model"]


def words(text: str) -> dict[str, np.ndarray]:
    """Stands in for the server's model `words`."""
    output = np.empty(1, object)
    output[0] = text.split()
    return {"output": output}


def test_the_longest_word_is_the_first() -> None:
    assert Model().predict("a longer text", {"words": words}) == ["longer", "text", "a"]
