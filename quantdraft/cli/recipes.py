"""recipes: what can be done to a draft, and with what here."""

from __future__ import annotations

import click

from quantdraft.cli import options
from quantdraft.cli.group import Command
from quantdraft.cli.values import Name, RecipeName, recipe_and_sweep_names
from quantdraft.common.progress import show_progress
from quantdraft.errors import OptionError


@click.command(
    cls=Command,
    short_help="List what can be done to a draft, and what it needs.",
    example="quantdraft recipes show int4",
)
@click.argument("action", required=False, type=Name("action", lambda: ("list", "show")))
@click.argument(
    "name", required=False, type=RecipeName("recipe", recipe_and_sweep_names, is_open=True)
)
@options.CHANGES
@options.json_output()
def recipes(action: str | None, name: str | None, changes: tuple[str, ...], as_json: bool) -> None:
    """List the bundled recipes, or show one: `quantdraft recipes show int4`.

    The list says what each needs, on which devices a kernel computes in it, and which engines load
    the result.
    """
    with show_progress("recipes"):
        from quantdraft.quantize.recipe_changes import parse_changes
        from quantdraft.workflows import list_recipes

        made = parse_changes(changes)

        if action != "show" and name is not None:
            raise OptionError(f"`list` takes no name. `quantdraft recipes show {name}`.")
        if action != "show":
            shown = (
                list_recipes.recipes_json(changes=made)
                if as_json
                else "\n".join(list_recipes.listing(changes=made))
            )
        elif name is None:
            raise OptionError("which one? `quantdraft recipes show NAME`.")
        else:
            shown = (
                list_recipes.recipes_json(name, made)
                if as_json
                else list_recipes.recipe_text(name, made)
            )
    click.echo(shown)
