"""`python -m exo.networking.grpc.wire.generate [--check]`: writes exo_pb2.py and exo_pb2.pyi from
exo.proto, or checks them.

Needs grpcio-tools (extra `dev`). It is not imported at run time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
PROTO = HERE / "exo.proto"
GENERATED = ("exo_pb2.py", "exo_pb2.pyi")


def generate(out: Path) -> None:
    """Write the generated files under `out`, in the same folders as the proto file."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            str(PROTO),
        ],
        check=True,
    )
    stub = out / HERE.relative_to(ROOT) / "exo_pb2.pyi"
    stub.write_text("# mypy: ignore-errors\n" + stub.read_text())  # protoc writes a bare Mapping


def stale() -> list[str]:
    """Names of committed files that differ from what the proto file gives."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / HERE.relative_to(ROOT)
        return [name for name in GENERATED if not _same(HERE / name, fresh / name)]


def _same(one: Path, two: Path) -> bool:
    return one.exists() and one.read_text() == two.read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where a file is stale"
    )
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = stale()
    for name in names:
        sys.stderr.write(f"{name} is stale: run python -m exo.networking.grpc.wire.generate\n")
    return 1 if names else 0


if __name__ == "__main__":
    raise SystemExit(main())
