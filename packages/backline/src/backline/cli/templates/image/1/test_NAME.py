from pathlib import Path
from runpy import run_path

import numpy as np

Model = run_path(str(Path(__file__).with_name("model.py")))["Model"]


def test_a_blue_picture_is_blue() -> None:
    model = Model()
    model.load()

    answer = model.predict(np.full((2, 3, 3), (50, 90, 230), np.uint8))

    assert answer == {"width": 3, "height": 2, "colour": "blue"}
