"""From an error to one clear line and an exit code: 1 failed, 2 wrong usage. No tracebacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from exo.utils.listening import CannotListen

FAILED = 1
USAGE = 2


class Failure(Exception):
    """Ends the program with `message` on standard error and exit code `code`."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def explain(error: BaseException, options: Collection[str] = ()) -> Failure:
    """The cause in the error's chain that a person can act on. An invalid request is wrong usage.

    options: the command's own options; an invalid field with such a name is reported as that one.
    """
    from exo.inference.errors import ContextExceeded, ExoError, InvalidRequest

    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, Failure):
            return cause
        if isinstance(cause, InvalidRequest) and not isinstance(cause, ContextExceeded):
            option = f"--{cause.field}: " if cause.field in options else ""
            return Failure(option + _one_line(cause), USAGE)
    ours = [cause for cause in chain if isinstance(cause, ExoError)]
    system = [cause for cause in chain if isinstance(cause, OSError) and cause.strerror]
    cause = [*ours, *system, chain[-1]][0]
    return Failure(_one_line(cause) + _way_out(cause))


def _way_out(error: BaseException) -> str:
    return (
        f"; choose another with --{error.setting.replace('_', '-')}"
        if isinstance(error, CannotListen)
        else ""
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, and the members of groups, outermost first."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        current = todo.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            todo.extend(current.exceptions)
        if current.__cause__ is not None:
            todo.append(current.__cause__)


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__
