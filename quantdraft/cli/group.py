"""Commands with an example, errors of one line, and a word on what stays after Ctrl-C.

Errors become one line here and nowhere else; a bug keeps its traceback.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from quantdraft.cli.interrupts import NOTHING_KEPT, STOPPED, ignore, is_program, leave, raise_again
from quantdraft.cli.pipes import as_given
from quantdraft.errors import FULL_DISK, QuantDraftError, is_out_of_memory, nearest, one_line

NOTHING_LEFT = "Nothing was left behind."
# What a user's files and disks do; any other OSError is a bug, and keeps its traceback.
OF_FILES = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


class Command(click.Command):
    """A command with an example; `stopped` says what Ctrl-C leaves and how to go on."""

    def __init__(
        self, *args: Any, example: str = "", stopped: str = NOTHING_KEPT, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.example = example
        self.stopped = stopped

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; an error of ours is one line and exit code 1, Ctrl-C one line and 130."""
        try:
            raise_again()
            return super().invoke(ctx)
        except QuantDraftError as error:
            fail(self._with_what_is_kept(str(error)))
        except KeyboardInterrupt:
            ignore()
            click.echo(f"\nStopped. {self.stopped}", err=True)
            sys.exit(STOPPED)
        except (MemoryError, RuntimeError, OSError) as error:
            if is_out_of_memory(error):
                fail("out of memory. Use a smaller --batch-size or a machine with more memory.")
            if isinstance(error, OSError) and error.errno in OF_FILES:
                fail(self._with_what_is_kept(_of_a_file(error)))
            raise

    def _with_what_is_kept(self, message: str) -> str:
        """Return the message; of a full disk, also what is kept and how to go on."""
        if not any(words.lower() in message.lower() for words in FULL_DISK) or "kept" in message:
            return message
        said = message.removesuffix(NOTHING_LEFT).strip()
        return f"{said} {self.stopped} Make room first, or give another place."

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example at the end of the help."""
        _write_example(self.example, formatter)


class Commands(click.Group):
    """A group of commands in the order of the path; its usage errors are one line."""

    command_class = Command

    def __init__(self, *args: Any, example: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example at the end of the help."""
        _write_example(self.example, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were added."""
        return list(self.commands)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **options: Any
    ) -> Any:
        """Run the command line and leave; exit code 2 where it could not be read."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **options)
        try:
            code = super().main(args, standalone_mode=False, **options)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            fail(_usage(error), error.exit_code)
        except click.Abort:
            fail("stopped.", STOPPED)
        except SystemExit as error:
            if error.code == STOPPED and is_program():
                leave()
            raise
        sys.exit(code if isinstance(code, int) else 0)


def _write_example(example: str, formatter: click.HelpFormatter) -> None:
    formatter.write(f"\nExample:\n  {example}\n")


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one line on stderr, and exit."""
    click.echo(f"Error: {one_line(as_given(message))}", err=True)
    sys.exit(code)


def _of_a_file(error: OSError) -> str:
    why = (error.strerror or type(error).__name__).lower()
    return f"'{error.filename}': {why}." if error.filename else f"{why}."


def _usage(error: click.ClickException) -> str:
    """Return what is wrong with a command line, with the nearest name and where to look."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message()
    message = f"{message[:1].lower()}{message[1:].rstrip('.')}."
    if ctx is None:
        return message
    match error:
        case click.NoSuchOption():
            options = [name for each in ctx.command.params for name in each.opts]
            hint = nearest(error.option_name, options)
            return f"no option {error.option_name!r}.{hint} {_help(ctx)}"
        case click.exceptions.NoSuchCommand() if isinstance(ctx.command, click.Group):
            hint = nearest(error.command_name, ctx.command.commands)
            return f"no command {error.command_name!r}.{hint} {_help(ctx)}"
        case click.MissingParameter() if error.param is not None:
            example = getattr(ctx.command, "example", "").splitlines()
            shown = f" Example: `{example[0]}`" if example else ""
            return f"`{ctx.command_path}` needs {_name(error.param)}.{shown}"
        case click.BadParameter() if error.param is not None:
            return f"{_name(error.param)}: {error.message}"
    return f"{message} {_help(ctx)}"


def _name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.human_readable_name


def _help(ctx: click.Context) -> str:
    return f"See `{ctx.command_path} --help`."
