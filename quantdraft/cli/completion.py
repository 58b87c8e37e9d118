"""completion: the script with which a shell completes commands, options, recipes and shapes."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from quantdraft.cli.group import Command
from quantdraft.cli.values import Name

PROGRAM = "quantdraft"
VARIABLE = "_QUANTDRAFT_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Command,
    short_help="Print the script with which your shell completes.",
    example='eval "$(quantdraft completion bash)"',
)
@click.argument("shell", type=Name("shell", lambda: SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets your shell complete what you type.

    \b
    bash:  echo 'eval "$(quantdraft completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(quantdraft completion zsh)"' >> ~/.zshrc
    fish:  quantdraft completion fish > ~/.config/fish/completions/quantdraft.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
