"""Each setting reaches the field that the options table names; wrong ones are named by flag."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from exo.cli.failures import Failure
from exo.cli.settings import defaults
from exo.cli.settings.options import BY_KEY, SETTINGS
from exo.cli.settings.records import (
    RECORDS,
    ServeSettings,
    check_files,
    from_environment,
    local_settings,
    serve_settings,
)
from exo.cli.settings.setting import Setting
from exo.contract import DISCOVERIES, ENGINES, env_name
from exo.node.settings import NodeSettings

DEFAULTS: dict[str, Any] = {setting.key: setting.default for setting in SETTINGS}
PRESENT = Path("/certificates")

# A value of each setting that is not its default, and what each field makes of it where that is
# another form. A new setting needs a row: without one it is not known to reach anything.
SAMPLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("tiny", {}),
    "engine": ("dummy", {}),
    "context_length": (77, {}),
    "models_dir": (Path("/models/mine"), {}),
    "cache_dir": (Path("/cache/mine"), {}),
    "hub_revision": ("v2", {}),
    "hub_token": ("token", {}),
    "offline": (True, {}),
    "weight_format": ("8bit", {}),
    "kv_budget": (3, {"engine.kv_budget": 3 * 2**20}),
    "max_sequences": (5, {}),
    "threads": (2, {}),
    "host": ("127.0.0.1", {}),
    "api_port": (1, {}),
    "health_port": (2, {}),
    "api_key": ("key", {}),
    "max_requests": (9, {}),
    "drain_seconds": (5.5, {}),
    "node_id": ("n1", {}),
    "cluster": ("mine", {}),
    "grpc_port": (3, {}),
    "advertise_host": ("10.0.0.9", {}),
    "discovery": ("udp", {}),
    "discovery_config": (Path("peers.json"), {}),
    "discovery_name": ("peers", {}),
    "discovery_port": (4, {}),
    "memory": (100, {}),
    "layers": ("3-7", {"node.pinned": (3, 7)}),
    "recovery_seconds": (6.5, {}),
    "stuck_seconds": (7.5, {}),
    "tls_dir": (
        PRESENT,
        {
            "node.tls_cert": PRESENT / "tls.crt",
            "node.tls_key": PRESENT / "tls.key",
            "node.tls_ca": PRESENT / "ca.crt",
        },
    ),
    "tls_check_identity": (True, {}),
    "secret": ("hush", {"node.secret": b"hush"}),
    "log_format": ("json", {}),
    "log_level": ("debug", {}),
}
# Settings without which another is refused.
NEEDS: dict[str, dict[str, Any]] = {"tls_check_identity": {"tls_dir": PRESENT}}
# Fields that no flag fills, and why.
UNSET = {
    "node.engine_options": "the record `engine` itself",
    "node.hub_endpoint": "HF_ENDPOINT, the variable of Hugging Face's own tools",
    "node.initialize_timeout": "a model may take long to load; nothing to choose",
    "engine.keep_blas_threads": "from the variables of the library itself",
    "engine.cache_bytes": "the cache is trimmed by itself",
    "api.max_body_bytes": "far above any request",
    "api.body_seconds": "far above any request",
}


def field_of(settings: ServeSettings, name: str) -> Any:
    record, _, attribute = name.partition(".")
    found: Any = {
        "node": settings.node,
        "engine": settings.node.engine_options,
        "api": settings.api,
        "process": settings.process,
    }[record]
    return getattr(found, attribute)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_setting_reaches_its_fields(setting: Setting) -> None:
    value, converted = SAMPLES[setting.key]
    needs = NEEDS.get(setting.key, {})
    without = serve_settings({**DEFAULTS, **needs}, environ={})
    made = serve_settings({**DEFAULTS, **needs, setting.key: value}, environ={})
    assert setting.feeds
    for feed in setting.feeds:
        expected = converted.get(feed.field, value)
        assert field_of(made, feed.field) == expected, feed.field
        if setting.key != "log_format":  # the default is that of the terminal
            assert field_of(without, feed.field) != expected, feed.field


def test_each_field_of_the_records_has_a_setting_or_a_reason_why_not() -> None:
    there = {f"{name}.{each.name}" for name, record in RECORDS.items() for each in fields(record)}
    fed = {feed.field for setting in SETTINGS for feed in setting.feeds}
    assert fed <= there
    assert there - fed == set(UNSET)
    assert set(defaults.BESIDES) <= set(UNSET)


def test_two_settings_do_not_fill_one_field() -> None:
    fed = [feed.field for setting in SETTINGS for feed in setting.feeds]
    assert len(fed) == len(set(fed))


def test_the_defaults_of_the_flags_are_those_of_the_records() -> None:
    made = serve_settings(DEFAULTS, environ={})
    found_at_run_time = {"node.node_id", "node.cache_dir", "engine.cache_dir", "api.port"}
    differ = []
    for name, record in RECORDS.items():
        for each in fields(record):
            field = f"{name}.{each.name}"
            if name == "process" or field in found_at_run_time | set(UNSET):
                continue
            if field_of(made, field) != default_of(each):
                differ.append(field)
    assert differ == []


def default_of(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def test_closed_sets_are_those_of_the_contract() -> None:
    assert BY_KEY["engine"].choices == ENGINES
    assert BY_KEY["discovery"].choices == DISCOVERIES
    engine = get_type_hints(RECORDS["engine"])
    assert BY_KEY["weight_format"].choices == get_args(engine["weight_format"])


def test_the_cache_folder_is_one_for_every_command(tmp_path: Path) -> None:
    environ = {env_name("cache-dir"): str(tmp_path)}
    served = serve_settings({**DEFAULTS, "cache_dir": tmp_path}, environ={}).node
    local = local_settings(environ)
    assert served.cache_dir == local.cache_dir == tmp_path
    assert served.engine_options.cache_dir == local.engine_options.cache_dir == tmp_path


def test_without_a_choice_the_image_folder_or_the_users_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "user")}
    monkeypatch.setattr(defaults, "CACHE_DIR", str(tmp_path / "none"))
    assert local_settings(environ).cache_dir == tmp_path / "user" / "exo"
    assert serve_settings(DEFAULTS, environ).node.cache_dir == tmp_path / "user" / "exo"
    monkeypatch.setattr(defaults, "CACHE_DIR", str(tmp_path))
    assert local_settings(environ).cache_dir == tmp_path
    assert serve_settings(DEFAULTS, environ).node.engine_options.cache_dir == tmp_path


def test_what_only_the_environment_says_reaches_its_fields() -> None:
    environ = {"POD_IP": "10.0.0.9", "HF_ENDPOINT": "http://hub", "OMP_NUM_THREADS": "1"}
    node = serve_settings(DEFAULTS, environ).node
    assert (node.advertise_host, node.hub_endpoint) == ("10.0.0.9", "http://hub")
    assert node.engine_options.keep_blas_threads
    assert not serve_settings(DEFAULTS, {}).node.engine_options.keep_blas_threads


def test_a_command_without_flags_takes_settings_from_the_environment() -> None:
    environ = {"EXO_OFFLINE": "on", "EXO_THREADS": "3", "EXO_HUB_REVISION": "v2", "EXO_MEMORY": "x"}
    made = local_settings(environ)
    assert (made.offline, made.engine_options.threads, made.hub_revision) == (True, 3, "v2")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("threads", "many", "expected a whole number of at least 1, got 'many'"),
        ("threads", "0", "expected a whole number of at least 1, got '0'"),
        ("offline", "perhaps", "expected true or false, got 'perhaps'"),
        ("weight-format", "5bit", "expected one of auto, stored, float32, 8bit, 4bit, got '5bit'"),
        ("api-port", "70000", "expected a whole number from 0 to 65535, got '70000'"),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str, says: str) -> None:
    with pytest.raises(Failure) as wrong:
        from_environment({env_name(name): text}, name.replace("-", "_"))
    assert (str(wrong.value), wrong.value.code) == (f"{env_name(name)}: {says}", 2)


def test_an_empty_variable_counts_as_unset() -> None:
    assert from_environment({"EXO_THREADS": ""}, "threads") == {}
    assert serve_settings({**DEFAULTS, "node_id": ""}, {}).node.node_id == NodeSettings().node_id


@pytest.mark.parametrize("layers", ["all", "3", "-3", "7-3", "a-b", "1-2-3"])
def test_layers_that_are_not_a_range_are_refused(layers: str) -> None:
    with pytest.raises(Failure) as wrong:
        serve_settings({**DEFAULTS, "layers": layers}, {})
    assert wrong.value.code == 2
    assert str(wrong.value).startswith("--layers: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"discovery": "manual", "discovery_config": Path("none.json")},
            "--discovery-config: none.json: no such",
        ),
        ({"discovery": "manual"}, "--discovery-config: manual discovery needs"),
        ({"discovery": "dns"}, "--discovery-name: dns discovery needs"),
        ({"discovery": "dns", "discovery_name": "x", "grpc_port": 0}, "--grpc-port: dns discovery"),
        ({"tls_dir": Path("none")}, "--tls-dir: none: no such"),
        ({"node_id": "a b"}, "--node-id: 'a b' must be"),
        ({"memory": -1}, "--memory: -1 must be"),
        ({"cluster": "x" * 129}, "--cluster: 129 characters"),
    ],
)
def test_a_setting_that_cannot_work_is_named_by_its_flag(
    changes: dict[str, Any], says: str
) -> None:
    values = {**DEFAULTS, **changes}
    with pytest.raises(Failure) as wrong:
        serve_settings(values, {})
        check_files(values)
    assert str(wrong.value).startswith(says)
    assert wrong.value.code == 2


def test_a_folder_of_certificates_that_lacks_one_names_it(tmp_path: Path) -> None:
    for name in ("tls.crt", "ca.crt"):
        (tmp_path / name).touch()
    with pytest.raises(Failure, match=r"--tls-dir: tls\.key: .*no such file"):
        check_files({**DEFAULTS, "tls_dir": tmp_path})
