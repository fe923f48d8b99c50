"""The operator as Helm installs it, on the cluster that `KUBECONFIG` names."""

from __future__ import annotations

import os
import shutil
import subprocess

from kube import ROOT

SYSTEM = "exo-system"
RELEASE = "exo-operator"


def helm(*args: str, timeout: float = 180) -> str:
    binary = os.environ.get("HELM") or shutil.which("helm")
    assert binary, "no helm: run these tests through `make e2e`"
    done = subprocess.run(
        [binary, *args], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"helm {' '.join(args)}: {done.stderr}"
    return done.stdout


def install(*extra: str) -> None:
    helm(
        "upgrade",
        "--install",
        RELEASE,
        str(ROOT / "charts" / "exo-operator"),
        "--namespace",
        SYSTEM,
        "--create-namespace",
        "--wait",
        "--timeout",
        "120s",
        *image_values(),
        *extra,
    )


def image_values() -> list[str]:
    return [part for part in os.environ.get("EXO_HELM_ARGS", "").split(" ") if part]
