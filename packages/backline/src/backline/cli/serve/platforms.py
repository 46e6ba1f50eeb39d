"""What platforms that start containers expect of `backline serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

#: Where SageMaker puts the files of a model, and the port to which it sends requests unless it names another.
SAGEMAKER_MODELS = Path("/opt/ml/model")
_SAGEMAKER_PORT = "8080"
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def set_for_sagemaker(given: dict[str, Any], context: click.Context) -> None:
    """Sets the repository, the address and the HTTP port that SageMaker expects, except for values that the
    user has given, if SageMaker started this container: with the argument `serve` in place of repositories.

    Raises UsageError if the port in the environment is not a number.
    """
    if Path("serve").exists() or not SAGEMAKER_MODELS.is_dir():
        return
    given["repositories"] = (str(SAGEMAKER_MODELS),)
    if context.get_parameter_source("host") not in _GIVEN:
        given["host"] = "0.0.0.0"
    if context.get_parameter_source("http_port") not in _GIVEN:
        port = os.environ.get("SAGEMAKER_BIND_TO_PORT") or _SAGEMAKER_PORT
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise click.UsageError(f"SAGEMAKER_BIND_TO_PORT is not a port: '{port[:64]}'")
        given["http_port"] = int(port)
