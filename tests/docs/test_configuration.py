"""docs/configuration.md against the actual options, fields and parameters."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import backline
from backline.cli import serve
from backline.cli.serve import triton_options
from backline.embedded import transport
from backline.engine.config.model_config import ModelConfig
from backline.plugins.runtimes.onnx import options as onnx_options
from backline.repository import configuration
from backline.repository.configuration import effects, native
from backline.repository.listing import FileEntry, Listing
from backline.repository.walk import walk
from backline_client.client.options import ClientOptions
from backline_client.protos import message
from backline_client.values.errors import InvalidArgument
from docs.pages import code, read, table, tables

PAGE = "docs/configuration.md"


def _options() -> dict[str, click.Option]:
    return {param.opts[0]: param for param in serve.command.params if isinstance(param, click.Option)}


def test_every_serve_option_is_listed_with_its_variable_and_default() -> None:
    listed = {
        code(row["option"])[0]: (code(row["option"]), code(row["environment variable"]), code(row["default"]))
        for row in table(PAGE, "option")
    }

    assert listed == {
        name: (
            option.opts,
            [option.envvar],
            [str(option.default)]
            if type(option.default) in (int, float, str) and option.default != ""
            else [],
        )
        for name, option in _options().items()
    }


def test_the_help_agrees_with_the_page() -> None:
    shown = CliRunner().invoke(serve.command, ["--help-all"], terminal_width=200).output

    for row in table(PAGE, "option"):
        for text in code(row["option"]) + code(row["environment variable"]) + code(row["default"]):
            assert text in shown


def test_the_short_help_lists_the_options_of_a_first_server() -> None:
    shown = CliRunner().invoke(serve.command, ["--help"], terminal_width=200).output

    assert {"--http-port", "--auth", "--help-all"} <= set(shown.split())
    assert "--ray-shards" not in shown


def test_the_variable_can_list_several_repositories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_MODEL_REPOSITORY", "one s3://bucket/two")

    context = serve.command.make_context("serve", [])

    assert context.params["model_repository"] == ("one", "s3://bucket/two")


def test_an_option_overrides_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_HTTP_PORT", "9000")

    assert serve.command.make_context("serve", ["--http-port", "9001"]).params["http_port"] == 9001


def test_every_triton_option_is_listed_with_its_replacement() -> None:
    listed = {
        code(row["option of tritonserver"])[0]: row["instead"]
        for row in table(PAGE, "option of tritonserver")
    }

    assert listed == triton_options.ELSEWHERE
    assert not listed.keys() & {name for option in _options().values() for name in option.opts}


@pytest.mark.parametrize("advice", triton_options.ELSEWHERE.values())
def test_replacements_name_existing_options(advice: str) -> None:
    names = {name for option in _options().values() for name in option.opts}

    assert {text.split()[0] for text in code(advice) if text.startswith("--")} <= names


def test_the_supported_fields_of_config_pbtxt_are_listed() -> None:
    listed = {field for row in table(PAGE, "field") for field in code(row["field"])}

    # A fully supported section is listed as a whole or by its fields.
    assert {
        next((part for part in _with_sections(field) if part in effects.SUPPORTED), field) for field in listed
    } == effects.SUPPORTED


def _with_sections(field: str) -> list[str]:
    parts = field.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def test_the_listed_fields_of_config_pbtxt_exist() -> None:
    for row in table(PAGE, "field"):
        for field in code(row["field"]):
            section = message("inference.ModelConfig").DESCRIPTOR
            for name in field.split("."):
                assert name in section.fields_by_name, field
                section = section.fields_by_name[name].message_type


def _read(folder: Path, text: str) -> ModelConfig:
    (folder / "config.pbtxt").write_text(text)
    config = configuration.read(walk(folder), folder.name)
    assert config is not None
    return config


@pytest.mark.parametrize("field", ["optimization {priority: PRIORITY_MAX}"])
def test_unsupported_fields_cause_warnings(tmp_path: Path, field: str) -> None:
    config = _read(tmp_path, field)

    assert any(
        field.split(maxsplit=1)[0] in warning and "not supported yet" in warning
        for warning in config.warnings
    )


def test_an_ensemble_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="ensemble"):
        _read(tmp_path, "ensemble_scheduling {}")


def test_every_setting_is_listed_for_both_files() -> None:
    listed = {
        code(row["key in `model.toml`"])[0]: code(row["parameter in `config.pbtxt`"])[0]
        for row in table(PAGE, "key in `model.toml`")
    }

    plain = {name: re.sub(r"\.[A-Z]+$", ".KEY", parameter) for name, parameter in listed.items()}
    expected = {}
    for setting in native.SETTINGS.values():
        for key in setting.keys:
            expected[f"{setting.name}.{key}"] = native.parameter(f"{setting.name}.{key}")
        if not setting.keys:
            expected[setting.name] = native.parameter(setting.name) + (".KEY" if setting.by_key else "")
    assert plain == expected


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", read(PAGE), re.DOTALL))
def test_the_model_toml_examples_are_read_without_warnings(example: str) -> None:
    contents = {"model.toml": example.encode()}
    listing = Listing("m", {path: FileEntry(0, "") for path in contents}, frozenset(), contents.__getitem__)

    config = configuration.read(listing, "m")

    assert config is not None
    assert config.warnings == ()


def test_the_parameters_are_listed_with_their_defaults() -> None:
    rows = {code(row["key"])[0]: code(row["default"]) for row in table(PAGE, "key")}
    settings = onnx_options.SessionSettings()

    assert rows.keys() == set(onnx_options._KEYS)
    assert rows["intra_op_thread_count"] == [str(settings.intra_op_threads)]
    assert rows["inter_op_thread_count"] == [str(settings.inter_op_threads)]
    assert onnx_options._EXECUTION_MODES[rows["execution_mode"][0]] == settings.execution_mode
    assert (
        onnx_options._OPTIMIZATION_LEVELS[rows["graph_optimization_level"][0]]
        == settings.graph_optimization_level
    )
    assert onnx_options._FLAGS[rows["enable_mem_arena"][0]] == settings.memory_arena
    assert onnx_options._FLAGS[rows["enable_mem_pattern"][0]] == settings.memory_pattern


def test_pass_through_prefixes_are_listed() -> None:
    (sentence,) = re.findall(r"Keys that begin with (.*?) are given", read(PAGE))

    assert set(code(sentence)) == set(onnx_options._SESSION_PREFIXES)


@pytest.mark.parametrize("connect", [backline.connect, backline.connect_async])
def test_the_clients_arguments_are_listed_with_their_defaults(connect: object) -> None:
    listed = {code(row["argument"])[0]: code(row["default"])[0] for row in table(PAGE, "argument")}
    options = ClientOptions()

    assert listed == {
        field.name: repr(getattr(options, field.name)) for field in dataclasses.fields(ClientOptions)
    }
    assert list(listed) == list(inspect.signature(connect).parameters)[1:]  # type: ignore[arg-type]


def test_the_options_of_an_embedded_engine_are_listed() -> None:
    arguments = list(inspect.signature(backline.Embedded).parameters)
    assert [code(row["argument"])[0] for row in table("docs/embedding.md", "argument")] == arguments
    (sentence,) = re.findall(r"The options are (.*?)\.\s+Commands", read("docs/embedding.md"), re.DOTALL)
    assert [name for name in code(sentence) if not name.startswith("--")] == list(transport._READ)


def test_the_client_accepts_every_listed_url() -> None:
    from backline_client.client.address import Address

    (rows,) = tables(PAGE, "URL")
    protocols = {Address.parse(url).protocol for row in rows for url in code(row["URL"])}

    assert protocols == {"http", "grpc", "inproc"}


def test_every_client_error_is_listed() -> None:
    from backline_client.client import errors

    listed = {code(row["error"])[0] for row in table("docs/client.md", "error")}

    assert listed == {name for name in errors.__all__ if not name.startswith("from_")} - {"BacklineError"}
