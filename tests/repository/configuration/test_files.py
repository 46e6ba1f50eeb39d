"""Which configuration file of a model is read, and the files that it refers to."""

from __future__ import annotations

import pytest

from backline.engine.config.model_config import ModelConfig, WarmUpInput, WarmUpSample
from backline.repository.configuration import read
from backline.repository.listing import FileEntry, Listing
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument


def folder(problem: str = "", **contents: str) -> Listing:
    named = {path.replace("__", "/").replace("_dot_", "."): text.encode() for path, text in contents.items()}
    return Listing(
        "/r/m",
        {path: FileEntry(len(text), "", problem) for path, text in named.items()},
        frozenset(),
        named.__getitem__,
    )


def read_config(listing: Listing, config_name: str = "") -> ModelConfig:
    config = read(listing, "m", config_name=config_name)
    assert config is not None
    return config


def test_a_folder_without_a_file_has_no_configuration() -> None:
    assert read(folder(labels_dot_txt="x"), "m") is None


@pytest.mark.parametrize(("config_name", "size"), [("", 1), ("big", 2), ("plain", 3), ("other", 1)])
def test_a_named_configuration_is_preferred_where_there_is_one(config_name: str, size: int) -> None:
    listing = folder(
        config_dot_pbtxt="max_batch_size: 1",
        configs__big_dot_pbtxt="max_batch_size: 2",
        configs__plain_dot_toml="max_batch_size = 3",
    )

    assert read_config(listing, config_name).max_batch_size == size


def test_two_files_are_an_error() -> None:
    with pytest.raises(
        InvalidArgument, match=r"^'/r/m' holds both config.pbtxt and model.toml; remove one of them$"
    ):
        read(folder(config_dot_pbtxt="", model_dot_toml=""), "m")


@pytest.mark.parametrize("config_name", ["../x", "a/b", ".x"])
def test_a_configuration_is_named_without_a_path(config_name: str) -> None:
    with pytest.raises(
        InvalidArgument,
        match="the name of a configuration is the name of a file in configs/ without its suffix",
    ):
        read(folder(), "m", config_name=config_name)


def test_an_unusable_file_is_named_with_its_problem() -> None:
    with pytest.raises(InvalidArgument, match=r"^leads out of the repository$"):
        read(folder("leads out of the repository", config_dot_pbtxt=""), "m")


def test_the_whole_message_is_kept() -> None:
    config = read_config(folder(config_dot_pbtxt="response_cache { enable: true }"))

    assert message("inference.ModelConfig").FromString(config.declared).response_cache.enable


def test_warm_up_samples_are_read_and_their_files_must_exist() -> None:
    text = """
        model_warmup {
          name: "first" batch_size: 2 count: 3
          inputs { key: "b" value { data_type: TYPE_INT32 dims: [ 2, 3 ] random_data: true } }
          inputs { key: "a" value { data_type: TYPE_FP32 dims: 4 input_data_file: "a.bin" } }
        }
        model_warmup { name: "second" inputs { key: "a"
          value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }
    """

    config = read_config(folder(config_dot_pbtxt=text, warmup__a_dot_bin="0123"))

    assert config.warm_up == (
        WarmUpSample(
            "first",
            2,
            3,
            (
                WarmUpInput("a", DataType.FP32, (4,), "a.bin"),
                WarmUpInput("b", DataType.INT32, (2, 3), "random"),
            ),
        ),
        WarmUpSample("second", 0, 1, (WarmUpInput("a", DataType.FP32, (4,), "zero"),)),
    )
    with pytest.raises(
        InvalidArgument,
        match=r"failed to open text file for read /r/m/warmup/a.bin: No such file or directory; it is the"
        r" input_data_file of warm-up 'first'$",
    ):
        read(folder(config_dot_pbtxt=text), "m")


def test_settings_in_parameters_are_not_passed_to_the_backend() -> None:
    parameters = {
        "backline.lane": "inline",
        "backline.labels.stable": "2",
        "backline.load": "on_demand",
        "threads": "2",
    }
    text = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    )

    config = read_config(folder(config_dot_pbtxt=text))

    assert (config.lane, config.labels, config.on_demand, config.parameters) == (
        "inline",
        {"stable": "2"},
        True,
        {"threads": "2"},
    )


def test_an_unknown_setting_is_refused_with_a_suggestion() -> None:
    text = 'name: "m"\nparameters { key: "backline.pined" value { string_value: "true" } }'

    with pytest.raises(
        InvalidArgument,
        match=r"^/r/m/config.pbtxt:2:1: unknown parameter 'backline.pined',"
        r" did you mean 'backline.pinned'\?$",
    ):
        read(folder(config_dot_pbtxt=text), "m")


def test_a_complete_configuration_must_name_inputs_and_outputs() -> None:
    tensor = 'put { name: "x" data_type: TYPE_FP32 dims: 1 }'
    complete = folder(config_dot_pbtxt=f"in{tensor} out{tensor}")

    config = read(complete, "m", complete=True)

    assert config is not None
    assert len(config.inputs) == len(config.outputs) == 1
    with pytest.raises(
        InvalidArgument, match=r"^/r/m/config.pbtxt: must specify at least one output for m, as"
    ):
        read(folder(config_dot_pbtxt=f"in{tensor}"), "m", complete=True)
    with pytest.raises(
        InvalidArgument,
        match=r"^failed to open text file for read /r/m/config.pbtxt: No such file .* add this file$",
    ):
        read(folder(), "m", complete=True)
