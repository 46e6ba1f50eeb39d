import json
import pathlib

from ts.utils.util import PredictionException


def handle(data, context):
    """One of the suite's models for TorchServe, behind its envelope for the protocol (service_envelope=kservev2).

    The envelope has read the inputs of one request; of BYTES it passes the first element. Without data it is loaded.
    """
    if data is None:
        return None
    inputs = {}
    for entry in data:
        if entry["datatype"] == "BYTES":
            array = np.array([str(entry["data"]).encode()], dtype=object)
        else:
            array = np.array(entry["data"], NUMPY[entry["datatype"]]).reshape(entry["shape"])
        inputs[entry["name"]] = array
    names = pathlib.Path(context.system_properties["model_dir"]) / "inputs.json"
    for name in json.loads(names.read_text()):
        if name not in inputs:
            raise PredictionException(f"the request lacks the input '{name}'", 400)
    model = context.manifest["model"]
    outputs = compute(model["modelName"], model["modelVersion"], inputs)
    return [[text.decode() for text in a.ravel()] if a.dtype == object else a for a in outputs.values()]
