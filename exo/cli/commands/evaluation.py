"""`exo eval` and `exo bench`: run `exo.inference.evaluate`, print for people, end with a line of
JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from exo.cli.failures import USAGE, Failure, explain
from exo.cli.loading import fetched
from exo.cli.settings.records import local_settings
from exo.download import hub_names
from exo.inference import evaluate
from exo.inference.checkpoints.catalog import model_id_of, resolve_model
from exo.inference.engines.options import EngineOptions

Work = Callable[[Path, EngineOptions], Coroutine[Any, Any, dict[str, Any]]]
# Fields of errors that are also options of these commands.
OPTIONS: Final = frozenset({"tokens-file", "out", "text", "shards", "batch", "prefill"})


def logits(
    model: str, tokens_file: Path, out: Path, engine: str, shards: int, *, batch: bool
) -> int:
    with _progress() as say:
        result = _run(
            model,
            lambda here, options: evaluate.eval_logits(
                here, tokens_file, out, engine, shards, batch, say, options
            ),
        )
    _print(f"{result['lists']} lists, {result['tokens']} tokens -> {out}", result)
    return 0


def perplexity(model: str, text: Path, engine: str) -> int:
    with _progress() as say:
        result = _run(
            model, lambda here, options: evaluate.eval_perplexity(here, text, engine, say, options)
        )
    figures = result["figures"]
    _print(f"perplexity {figures['perplexity']:.4f} over {figures['tokens']} tokens", result)
    return 0


def bench(model: str, engine: str, batch: str, prefill: str, shards: int = 1) -> int:
    batches, prefills = numbers("--batch", batch), numbers("--prefill", prefill)
    with _progress() as say:
        result = _run(
            model,
            lambda here, options: evaluate.bench(
                here, engine, batches, prefills, say, shards, options
            ),
        )
    lines = [f"{name:<14}{value:>10.1f}{_unit(name)}" for name, value in result["figures"].items()]
    _print("\n".join(lines), result)
    return 0


def numbers(flag: str, text: str) -> list[int]:
    """`1,4,16`. Raises `Failure` (usage)."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise Failure(f"{flag}: {text!r} is not a list of whole numbers like 1,4,16", USAGE)
    return [int(part) for part in parts]


def _unit(name: str) -> str:
    if name.startswith(("prefill", "decode")):
        return " tokens/s"
    return " s" if name.endswith("seconds") else " MiB" if name.endswith("mib") else ""


def _run(model: str, work: Work) -> dict[str, Any]:
    """The result of `work` on the model; a model of the hub is fetched first."""
    settings = local_settings(os.environ)

    async def fetch_and_work() -> dict[str, Any]:
        if hub_names.is_hub_name(model):
            path, shard = await fetched(model, settings)
            name = shard.model_id
        else:
            path, name = resolve_model(model, settings.models_dir), model_id_of(model)
        result = await work(path, settings.engine_options)
        return {**result, "model": name} if "model" in result else result

    try:
        return asyncio.run(fetch_and_work())
    except Exception as error:
        raise explain(error, OPTIONS) from error


def _print(text: str, result: dict[str, Any]) -> None:
    sys.stdout.write(f"{text}\n{json.dumps(result)}\n")


@contextlib.contextmanager
def _progress() -> Iterator[evaluate.Say]:
    """A bar on standard error, if that is a terminal."""
    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("loading", total=None)

        def say(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield say
