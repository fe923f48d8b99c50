"""`exo`: the command line. Commands import what they need when they run, so that help is quick."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from exo import __version__
from exo.cli.failures import Failure, explain
from exo.cli.settings.flags import with_settings
from exo.cli.settings.options import BY_KEY
from exo.cli.settings.origins import SettingsCommand, origin_or_default, with_origin
from exo.contract import API_PORT, DEFAULT_MODEL, EngineName, env_name

EPILOG = (
    "Every flag can also be set as an environment variable (`--api-port` is EXO_API_PORT) or in a"
    " config file."
)
app = typer.Typer(
    name="exo",
    help="Distributed LLM inference: one model over the machines you have.",
    epilog="Start with: exo run smollm2-135m --prompt 'What is the capital of France?'",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluate = typer.Typer(help="Check a model's numbers: logits and perplexity.", no_args_is_help=True)
app.add_typer(evaluate, name="eval")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A bundled model's name, a GGUF file or folder, or hf:OWNER/REPO."
    ),
]
EngineFlag = Annotated[EngineName, typer.Option(help="What computes.", envvar=env_name("engine"))]
Shards = Annotated[int, typer.Option(min=1, help="Run the layers as this many stages.")]
Url = Annotated[str, typer.Option(help="A node's address.", envvar=env_name("url"))]
Key = Annotated[
    str | None,
    typer.Option(help="The node's API key.", envvar=env_name("api-key"), show_envvar=True),
]
LOCAL = f"http://127.0.0.1:{API_PORT}"


def _serve(ctx: typer.Context, values: dict[str, Any]) -> None:
    """Run a node until SIGTERM: HTTP API, dashboard, and its part of the ring."""
    # While the modules load, nothing is open yet. Without this handler the kernel ignores SIGTERM
    # for a container's first process, and the pod would end only after its grace period.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from exo.cli.commands.serve import serve

    try:
        raise typer.Exit(serve(values))
    except Failure as failure:
        raise with_origin(failure, ctx) from failure


def _config(ctx: typer.Context, values: dict[str, Any]) -> None:
    """Print the settings a node would run with, and where each comes from."""
    from exo.cli.settings.configuration import show

    show(
        {key: (value, origin_or_default(ctx, BY_KEY[key])) for key, value in values.items()}, BY_KEY
    )


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"exo {__version__}")
        raise typer.Exit


@app.callback()
def _exo(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("serve", cls=SettingsCommand, epilog=EPILOG)(with_settings(_serve))


@app.command(cls=SettingsCommand)
def run(
    model: Model,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="What to ask; - reads standard input.")
    ] = "-",
    system: Annotated[str | None, typer.Option(help="How the model should behave.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.")] = None,
    engine: EngineFlag = "auto",
) -> None:
    """Answer one prompt and exit, without a server. Only the answer is on standard output."""
    from exo.cli.commands.run import Ask, run_once

    raise typer.Exit(run_once(Ask(model, prompt, system, max_tokens, temperature, seed, engine)))


@app.command()
def chat(
    url: Url = LOCAL,
    model: Annotated[
        str | None, typer.Option(help="One of the node's models.", show_default="its first")
    ] = None,
    system: Annotated[str | None, typer.Option(help="How the model should behave.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
    ] = 0.7,
    api_key: Key = None,
) -> None:
    """Talk to a running node in the terminal."""
    from exo.cli.commands.chat import Talk

    raise typer.Exit(Talk(url, model, system, temperature, api_key).run())


@app.command()
def status(
    url: Url = LOCAL,
    api_key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show a running node: ring, layer map, resources, requests. Exit code 1 unless it is ready."""
    from exo.cli.commands.status import show

    raise typer.Exit(show(url, api_key, as_json=as_json))


@app.command()
def models() -> None:
    """List the models this machine can serve without a download."""
    from exo.cli.commands.models import show

    raise typer.Exit(show())


@app.command(cls=SettingsCommand)
def doctor(
    model: Annotated[
        str, typer.Option(help="The model to check.", envvar=env_name("model"))
    ] = DEFAULT_MODEL,
) -> None:
    """Check whether this machine can run a node, and explain what is wrong."""
    from exo.cli.commands.doctor import show

    raise typer.Exit(show(model))


app.command("config", cls=SettingsCommand, epilog=EPILOG)(with_settings(_config))


@app.command(cls=SettingsCommand)
def bench(
    model: Model,
    engine: EngineFlag = "auto",
    batch: Annotated[str, typer.Option(help="Batch sizes to decode with.")] = "1,4,16",
    prefill: Annotated[str, typer.Option(help="Prompt lengths.")] = "128,512",
    shards: Shards = 1,
) -> None:
    """Measure tokens per second here; the last line is JSON."""
    from exo.cli.commands.evaluation import bench as measure

    raise typer.Exit(measure(model, engine, batch, prefill, shards))


@evaluate.command(cls=SettingsCommand)
def logits(
    model: Model,
    tokens_file: Annotated[Path, typer.Option(help="JSON: a list of lists of token ids.")],
    out: Annotated[
        Path, typer.Option(help="The .npz to write: logits_0, logits_1, … (tokens, vocab).")
    ],
    engine: EngineFlag = "auto",
    shards: Shards = 1,
    batch: Annotated[bool, typer.Option("--batch", help="Run the lists as one batch.")] = False,
) -> None:
    """Write the logits of given tokens."""
    from exo.cli.commands.evaluation import logits as compute

    raise typer.Exit(compute(model, tokens_file, out, engine, shards, batch=batch))


@evaluate.command(cls=SettingsCommand)
def perplexity(
    model: Model,
    text: Annotated[Path, typer.Option(help="A text file.")],
    engine: EngineFlag = "auto",
) -> None:
    """Measure how well a model predicts a text; the last line is JSON."""
    from exo.cli.commands.evaluation import perplexity as compute

    raise typer.Exit(compute(model, text, engine))


@app.command()
def version() -> None:
    """Print the version."""
    _version(True)


def main() -> None:
    """Run the command and end the process: 0 fine, 1 failed, 2 wrong usage, 130 on Ctrl-C. An error
    is one line on standard error.
    """
    try:
        app()
    except Failure as failure:
        if os.environ.get("EXO_DEBUG"):
            traceback.print_exception(failure)
        _die(str(failure), failure.code)
    except Exception as error:
        if os.environ.get("EXO_DEBUG"):
            raise
        known = explain(error)
        _die(f"{known} (EXO_DEBUG=1 shows where)", known.code)


def _die(message: str, code: int) -> None:
    print(f"exo: {message}", file=sys.stderr)  # noqa: T201 - the program's last line
    raise SystemExit(code) from None
