"""What the images are: unprivileged, without an installer, without anything of the machine that
built them.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

NODE, OPERATOR = "exo-node:dev", "exo-operator:dev"
IMAGES = (NODE, OPERATOR)


def docker(*args: str) -> str:
    done = subprocess.run(
        ["docker", *args], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr}"
    return done.stdout


def config(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("image", "inspect", image))[0]["Config"]
    return found


def python(image: str, code: str) -> str:
    return docker(
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "--entrypoint",
        "python",
        image,
        "-c",
        code,
    ).strip()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_numeric_user_and_imports_nothing_from_the_working_folder(
    image: str,
) -> None:
    found = config(image)
    assert found["User"] == "65532:65532"
    assert "PYTHONSAFEPATH=1" in found["Env"]
    assert python(image, "import os; print(os.getuid(), os.getgid())") == "65532 65532"


@pytest.mark.parametrize(
    ("image", "absent"), [(NODE, ("kopf", "kubernetes")), (OPERATOR, ("numpy", "grpc", "onnx"))]
)
def test_an_image_holds_only_its_own_packages_and_no_installer(
    image: str, absent: tuple[str, ...]
) -> None:
    names = ("pip", "setuptools", "pytest", *absent)
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert python(image, code) == "[]"


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_of_the_building_machine_is_baked_in(image: str) -> None:
    code = (
        "import pathlib; print([str(p) for p in [*pathlib.Path('/run').rglob('secrets/*'),"
        " *pathlib.Path('/etc').glob('pip*'), *pathlib.Path('/root').glob('.*pip*'),"
        " *pathlib.Path('/tmp').glob('*')]])"
    )
    assert (
        docker("run", "--rm", "--user", "0", "--entrypoint", "python", image, "-c", code).strip()
        == "[]"
    )
    assert "secrets" not in " ".join(config(image)["Env"])


def test_the_node_image_carries_the_model_where_the_contract_says() -> None:
    code = (
        "from exo import contract; import pathlib;print([p.name for p in"
        " (pathlib.Path(contract.MODELS_DIR) / contract.DEFAULT_MODEL).glob('*.gguf')])"
    )
    assert python(NODE, code) == "['SmolLM2-135M-Instruct.Q4_1.gguf']"


def test_both_programs_start_without_writing_to_the_image() -> None:
    assert "serve" in docker("run", "--rm", "--network", "none", "--read-only", NODE, "--help")
    assert (
        "usage"
        in docker("run", "--rm", "--network", "none", "--read-only", OPERATOR, "--help").lower()
    )
