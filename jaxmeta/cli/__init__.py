"""The command line: `jaxmeta train`, `evaluate`, `compare`, `taylor` and `list`."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import tyro

from jaxmeta.cli import _commands, _taylor
from jaxmeta.cli._arguments import Compare, Evaluate, List, Taylor, Train

Command = Annotated[Train | Evaluate | Compare | Taylor | List, tyro.conf.ConsolidateSubcommandArgs]

_DESCRIPTION = "Meta-learning in JAX with exact second-order gradients."
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ArithmeticError, RuntimeError)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command. Bad input prints one line on standard error and returns 2.

    Args:
        args: the words after `jaxmeta`; None for the process's own.
    """
    command = None
    try:
        command = _parse(args)
        match command:
            case Train():
                _commands.train(command)
            case Evaluate():
                _commands.evaluate(command)
            case Compare():
                _commands.compare(command)
            case Taylor():
                _taylor.taylor(command)
            case List():
                _commands.list_presets()
    except _USER_ERRORS as error:
        print(f"jaxmeta: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; continue with the same command and --resume" if isinstance(command, Train) else ""
        print(f"jaxmeta: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def _parse(args: Sequence[str] | None) -> Train | Evaluate | Compare | Taylor | List:
    """Parses the command line; a mistake in it is a `ValueError` of one line."""
    if (sys.argv[1:] if args is None else list(args)) == ["--version"]:
        print(f"jaxmeta {version('jaxmeta')}")
        raise SystemExit(0)
    mistakes = io.StringIO()
    try:
        with contextlib.redirect_stderr(mistakes):
            return tyro.cli(Command, prog="jaxmeta", description=_DESCRIPTION, args=args)  # pyright: ignore
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_first_sentence(mistakes.getvalue())) from None


def _first_sentence(box: str) -> str:
    """The message of tyro's framed error: what stands between the title's rule and the next."""
    parts = re.split(r"^\W*(?:[─-]+ [\w ]+ )?[─-]{3,}\W*$", box, flags=re.MULTILINE)
    message = parts[1] if len(parts) > 1 else box
    return " ".join(re.sub(r"[│|]", " ", message).split()) + " (see jaxmeta --help)"
