"""The tables that Triton logs after it has started: the models with their states, and the options."""

from __future__ import annotations

from collections.abc import Sequence

from backline.dialects.open_inference.metadata import server_metadata
from backline.engine.engine import Engine
from backline.engine.model import ModelState
from backline.engine.names import printable
from backline.server import Server


def model_table(engine: Engine) -> str:
    """Returns a table of the versions of all models, with the reason for each failure."""
    rows = [
        (
            model.name,
            model.version,
            "READY" if model.state is ModelState.READY else f"{model.state.value}: {model.reason}",
        )
        for model in engine.models()
    ]
    return render(("Model", "Version", "Status"), sorted(rows))


def option_table(server: Server) -> str:
    """Returns a table of those options that Triton shows and that Backline also has."""
    options = server.options
    lifecycle = options.lifecycle
    metadata = server_metadata(server.engine)
    rows = [
        ("server_id", metadata["name"]),
        ("server_version", metadata["version"]),
        ("server_extensions", " ".join(metadata["extensions"])),
        *(
            (f"model_repository_path[{index}]", str(location))
            for index, location in enumerate(options.repositories)
        ),
        ("model_control_mode", f"MODE_{lifecycle.mode.upper()}"),
        *((f"startup_models_{index}", name) for index, name in enumerate(lifecycle.load_models)),
        ("strict_model_config", str(int(lifecycle.complete_configs))),
        ("model_config_name", options.config_name),
        ("rate_limit", "OFF" if lifecycle.rate_limit is None else "EXEC_COUNT"),
        ("strict_readiness", str(int(lifecycle.strict_readiness))),
        ("exit_timeout", f"{options.limits.drain_timeout:g}"),
        ("cache_enabled", str(int(lifecycle.response_cache is not None))),
    ]
    return render(("Option", "Value"), rows)


def render(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table with borders. A cell may have several lines."""
    cells = [[[printable(line) for line in cell.split("\n")] for cell in row] for row in (headers, *rows)]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(headers))]
    border = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [border]
    for index, row in enumerate(cells):
        for number in range(max(map(len, row))):
            texts = (cell[number] if number < len(cell) else "" for cell in row)
            filled = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
            lines.append("| " + " | ".join(filled) + " |")
        if index == 0:
            lines.append(border)
    return "\n".join([*lines, border, ""])
