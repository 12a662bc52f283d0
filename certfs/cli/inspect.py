"""``certfs list``: every certificate of every bundle, and what was left out with the reason (promise I9)."""

import sys
from datetime import UTC, datetime
from typing import Final

import click

from certfs.cli.json_forms import ListItem, ListSeverity, answer, file_form
from certfs.cli.places import Place, find_place, items_of, opened, with_place
from certfs.core.certificate import Severity
from certfs.core.text import printable
from certfs.identity.validate import iso
from certfs.store.inspection import Item

_SEVERITIES: Final[dict[Severity, ListSeverity]] = {
    Severity.NOTE: "note",
    Severity.WARNING: "warning",
    Severity.DEFECT: "defect",
}


def _form(place: Place, item: Item, now: datetime) -> ListItem:
    details = item.details

    def absolute(path: bytes) -> str:
        return file_form(place.path(tuple(path.split(b"/"))))

    return ListItem(
        bundle=absolute(item.bundle),
        source=absolute(item.source),
        line=item.line,
        subject=details.subject if details else None,
        issuer=details.issuer if details else None,
        sha256=item.certificate.fingerprint.hex() if item.certificate else None,
        not_before=iso(details.not_before) if details and details.not_before else None,
        not_after=iso(details.not_after) if details and details.not_after else None,
        days_left=_days_left(item, now),
        included=item.included,
        severity=_SEVERITIES[item.severity],
        reason=_reason(item) or None,
        duplicate_of=absolute(item.duplicate_of) if item.duplicate_of else None,
    )


def _days_left(item: Item, now: datetime) -> int | None:
    end = item.details.not_after if item.details else None
    return (end - now).days if end is not None else None


def _reason(item: Item) -> str:
    if item.duplicate_of:
        return f"duplicate of {printable(item.duplicate_of)}"
    return printable(item.reason)


@click.command(
    "list",
    epilog="\b\nExamples:\n  certfs list\n  certfs list /mnt/certs --json\n  certfs list --store /srv/store",
)
@with_place
def list_(
    *, mountpoint: str | None, store: str | None, config_file: str | None, as_json: bool
) -> None:
    """List each certificate of each bundle with its source, and what was left out with the reason.

    Without MOUNTPOINT it is this host, mounted or not. On a mount it is what is served at this moment.
    """
    now = datetime.now(UTC)
    place = find_place(mountpoint, store, config_file)
    with opened(place) as trust:
        items = [item for bundle in trust.bundles for item in items_of(place, bundle)]
    if as_json:
        answer(tuple(_form(place, item, now) for item in items))
    else:
        _show(items, now)


def _show(items: list[Item], now: datetime) -> None:
    """Write the table: in columns and colours on a terminal, tab-separated when piped."""
    if not items:
        click.echo("no sources", err=True)  # beside the table, which a program reads
    if not sys.stdout.isatty():
        for item in items:
            click.echo("\t".join(_row(item, now)))
        return
    from rich.console import Console  # noqa: PLC0415 - not needed where no person looks
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    for bundle in dict.fromkeys(item.bundle for item in items):
        table = Table(
            "source",
            "subject",
            "days left",
            "sha256",
            "left out",
            title=printable(bundle),
            expand=False,
        )
        for item in items:
            if item.bundle == bundle:
                _, source, subject, days, sha256, reason = _row(item, now)
                table.add_row(
                    Text(source.rpartition("/")[2]),
                    Text(subject),
                    Text(days),
                    Text(sha256[:16]),
                    Text(reason),
                    style=_style(item, now),
                )
        console.print(table)


def _row(item: Item, now: datetime) -> tuple[str, str, str, str, str, str]:
    where = f"line {item.line}: " if item.line else ""
    days = _days_left(item, now)
    return (
        printable(item.bundle),
        printable(item.source),
        (item.details.subject or "") if item.details else "",
        "" if days is None else str(days),
        item.certificate.fingerprint.hex() if item.certificate else "",
        where + _reason(item) if not item.included else "",
    )


def _style(item: Item, now: datetime) -> str:
    not_after = item.details.not_after if item.details else None
    if not_after is not None and not_after < now:
        return "red"
    if item.severity > Severity.NOTE:
        return "yellow"
    return "" if item.included else "dim"
