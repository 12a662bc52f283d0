"""``certfs schema``: the JSON Schema of what a command answers with ``--json``.

Owns the files beside this one, which ``python -m certfs.cli.schemas DIRECTORY`` writes from the types in
``certfs.cli.json_forms``; a test keeps the two together.
"""

from importlib import resources

import click

_SUFFIX = ".json"


def names() -> tuple[str, ...]:
    """Return the commands that have a schema, and ``error``."""
    files = resources.files(__package__).iterdir()
    return tuple(
        sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))
    )


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs schema check\n"
    "  certfs schema error        what every command answers that fails\n"
    "  certfs schema pool-status  what certfs pool status answers\n"
    "  certfs schema summary      what everybody may know of a mount"
)
@click.argument("command", type=click.Choice(names()), metavar="COMMAND|error|summary")
def schema(*, command: str) -> None:
    """Print the JSON Schema of what COMMAND answers with --json."""
    text = resources.files(__package__).joinpath(command + _SUFFIX).read_text(encoding="utf-8")
    click.echo(text, nl=False)
