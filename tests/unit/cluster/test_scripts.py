"""The small decisions of the build scripts: which pip settings travel, what a bench prints, when a
cache counts.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import bench_table
import pip_settings

ROOT = Path(__file__).resolve().parents[3]
LIB = ROOT / "tests" / "cluster" / "lib.sh"


def bash(code: str, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs code after lib.sh, with a cache folder of its own and no Docker engine in sight."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(cache),
        "EXO_CACHE": str(cache),
        "DOCKER_HOST": "unix:///nowhere",
        **more,
    }
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source {LIB}; {code}"],
        capture_output=True,
        text=True,
        env=env,
        timeout=30,
        check=False,
    )


def test_index_settings_travel_and_certificates_and_local_folders_do_not() -> None:
    listed = [
        "global.index-url='https://index.example/simple'",
        "global.cert='/etc/ssl/certs/ca-certificates.crt'",
        ":env:.find-links='/opt/wheels'",
        ":env:.default-timeout='180'",
    ]
    assert pip_settings.settings(listed) == {
        "index-url": "https://index.example/simple",
        "default-timeout": "180",
    }


def test_the_environment_wins_over_a_file_whatever_comes_first() -> None:
    one, two = "global.index-url='https://file.example'", ":env:.index-url='https://env.example'"
    assert (
        pip_settings.settings([one, two])
        == pip_settings.settings([two, one])
        == {"index-url": "https://env.example"}
    )


def test_several_extra_indexes_stay_one_setting() -> None:
    text = pip_settings.pip_conf({"extra-index-url": "https://a.example\nhttps://b.example"})
    assert text == "[global]\nextra-index-url = https://a.example\n    https://b.example\n"


def test_the_table_has_a_row_for_each_ratio_and_names_a_line_that_is_no_result() -> None:
    lines = [
        json.dumps({"name": "ring", "figures": {}, "ratios": {"two_nodes": 0.91, "peer": None}}),
        "Segmentation fault",
    ]
    assert bench_table.rows(lines) == [
        ("ring", "two_nodes", "0.91"),
        ("ring", "peer", "None"),
        ("?", "not a result", "Segmentation fault"),
    ]


def test_a_cache_key_depends_on_contents_and_not_on_paths(tmp_path: Path) -> None:
    for folder, text in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "input").write_text(text)
    keys = bash(
        f"cd {tmp_path}; for d in one two three; do key_of $d/input; done", tmp_path
    ).stdout.split()
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0]) == 12


def test_a_failed_step_shows_the_end_of_its_log_and_ends_the_script(tmp_path: Path) -> None:
    done = bash(
        "boom() { echo the reason; false; echo never; }; step 'Do it' boom; echo unreached",
        tmp_path,
    )
    assert done.returncode == 1
    assert "the reason" in done.stderr
    assert "Do it (failed after" in done.stderr
    assert "never" not in done.stderr
    assert "unreached" not in done.stdout


def test_a_lock_is_free_again_when_its_holder_was_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    done = bash(
        f"( with_lock {lock} bash -c 'kill -9 $PPID $$' ) 2>/dev/null || true; "
        # Whom it was killed with may take a moment longer to die, and holds the file open until
        # then.
        f"until flock -n {lock} true; do sleep 0.01; done; with_lock {lock} echo mine",
        tmp_path,
    )
    assert done.stdout == "mine\n"
    assert "waiting" not in done.stderr


def test_a_node_of_another_cluster_is_never_touched(tmp_path: Path) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "EXO_CACHE": str(tmp_path),
        "DOCKER_HOST": "unix:///nowhere",
    }
    for verb in ("kill-node", "start-node", "partition-node", "heal-node", "exec-node"):
        done = subprocess.run(
            [str(ROOT / "tests" / "cluster" / "cluster"), verb, "kind-worker"],
            capture_output=True,
            text=True,
            env=env,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert "no such node: kind-worker" in done.stderr
