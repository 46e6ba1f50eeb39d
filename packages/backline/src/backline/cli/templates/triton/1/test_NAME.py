from pathlib import Path

import numpy as np

import backline

FOLDER = Path(__file__).parents[1]


def test_rows_are_independent() -> None:
    with backline.connect(f"inproc://{FOLDER}") as models:
        answers = models[FOLDER.name](np.eye(4, dtype=np.float32))["y"]

    np.testing.assert_allclose(answers[:, 0], [-1, -1 / 3, 1 / 3, 1], rtol=1e-6)
