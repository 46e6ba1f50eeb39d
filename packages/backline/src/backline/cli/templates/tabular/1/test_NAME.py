from pathlib import Path
from runpy import run_path

Model = run_path(str(Path(__file__).with_name("model.py")))["Model"]


def test_furniture_costs_a_fifth() -> None:
    model = Model()
    model.load()

    plain = model.predict(area=50.0, rooms=2, district="suburb")
    furnished = model.predict(area=50.0, rooms=2, district="suburb", furnished=True)

    assert (plain, furnished) == ({"rent": 680.0}, {"rent": 816.0})
