"""``certfs gencert``: the platform's generator of host certificates, called as the platform calls it.

Owns the arguments, which are those of every release: ``PATH``, ``PATH NAME`` and ``PATH GID NAME``
(``scripts/gencert.service`` and ``ocaml/gencert/gencert.ml`` in xapi-project/xen-api). The work is
done in ``certfs.identity.boot``.
"""

import re
from pathlib import Path

import click

from certfs.cli.answers import certificate_lines, say
from certfs.identity.boot import NO_GROUP, Presented, generate_if_missing
from certfs.identity.describe import describe_loaded
from certfs.identity.paths import file_errors

_NUMBER = re.compile(r"[+-]?[0-9]{1,10}")
_LAST_GROUP = 2**32 - 2
"""(gid_t) -1 stands for "leave it" (chown(2))."""


@click.command(
    "gencert",
    # The platform's unit passes -1 for GID, which is an argument and no option.
    context_settings={"ignore_unknown_options": True},
    epilog="\b\nExamples:\n"
    "  certfs gencert /etc/xensource/xapi-ssl.pem -1 default      as the platform's unit calls it\n"
    "  certfs gencert /etc/xensource/xapi-pool-tls.pem 204 xapi:pool",
)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("group_and_name", nargs=-1, metavar="[[GID] default|xapi:pool]")
def gencert(*, path: Path, group_and_name: tuple[str, ...]) -> None:
    """Generate the key and certificate PATH if it is missing, as the platform does at boot.

    GID is the number of the group that may read it; a negative number stands for no group. A file
    that is there stays as it is, whatever the other arguments are.
    """
    if str(path).startswith("-"):
        raise click.UsageError(f"No such option {str(path)!r}.")
    group, name = _group_and_name(group_and_name)
    with file_errors(path):
        is_there = path.exists()
    if is_there:
        say(f"{path} is there: nothing to do")
        return
    made = generate_if_missing(path, _presented(name), group=_group(group))
    say(
        f"{path}: generated\n{certificate_lines(describe_loaded(made))}"
        if made
        else f"{path} is there"
    )


def _group_and_name(words: tuple[str, ...]) -> tuple[str, str]:
    match words:
        case ():
            return str(NO_GROUP), Presented.DEFAULT
        case (name,):
            return str(NO_GROUP), name
        case (group, name):
            return group, name
        case _:
            raise click.UsageError("give PATH, then at most GID and one of default, xapi:pool")


def _group(text: str) -> int:
    if _NUMBER.fullmatch(text) is None or int(text) > _LAST_GROUP:
        raise click.UsageError(f"GID must be the number of a group, or -1 for none, not {text!r}")
    return int(text)


def _presented(name: str) -> Presented:
    if name not in set(Presented):
        raise click.UsageError(f"{name!r} is neither default nor xapi:pool")
    return Presented(name)
