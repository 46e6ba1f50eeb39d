from pathlib import Path
from runpy import run_path

import numpy as np

Model = run_path(str(Path(__file__).with_name("model.py")))["Model"]


def test_similar_texts_have_similar_vectors() -> None:
    first, second, other = map(Model().predict, ("model server", "model servers", "a cup of tea"))

    assert np.isclose(first @ first, 1)
    assert first @ second > 0.8 > first @ other
