"""``certfs status``: what is mounted, and how it is.

Owns how the answer looks; where it comes from is `certfs.client.query`.
"""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import click

from certfs.cli.json_forms import seconds_of
from certfs.client.instances import find
from certfs.client.mount import canonical
from certfs.client.query import Answer, ask_host, ask_instance, ask_mount
from certfs.core.text import printable
from certfs.errors import CertfsError, DeadlineError, NotMountedError, PrivilegeError
from certfs.protocol import state_file

_LAST_EVENTS: Final = 5
_PHASES: Final = {
    "starting": "starting",
    "serving": "serving",
    "plain": "NOT SERVING: the plain directories are in view",
    "ending": "ending",
    "dead": "DEAD: its processes were killed",
}


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs status\n"
    "  certfs status ~/mnt\n"
    "  certfs status --json | jq .bundles[].certificates"
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object (schema: docs/operations.md)."
)
@click.argument("mountpoint", required=False)
def status(*, mountpoint: str | None, as_json: bool) -> None:
    """Show what is mounted where, since when, its bundles, and the last crashes and restarts.

    Without MOUNTPOINT the host's own directories, else whatever you have mounted. A mount that does not answer within 3
    seconds is reported as such, with exit code 9.
    """
    answers = _answers(mountpoint)
    if as_json and len(answers) > 1:
        targets = ", ".join(answer.state.targets[0] for answer in answers if answer.state)
        raise click.UsageError(f"there are several mounts, name one of them: {targets}")
    for number, answer in enumerate(answers):
        if as_json:
            click.echo(json.dumps(asdict(answer.status()), indent=2))
        else:
            click.echo(
                ("\n" if number else "") + "\n".join(_lines(_shown(asdict(answer.status()))))
            )
    if any(answer.report is None for answer in answers):
        sys.exit(DeadlineError.exit_code)


def _answers(mountpoint: str | None) -> list[Answer]:
    if mountpoint is not None:
        answer = _at(mountpoint)
        if answer:
            return [answer]
        raise NotMountedError(
            f"certfs is not mounted at {mountpoint}, or does not answer",
            advice="certfs status without an argument shows what you have mounted",
        )
    try:
        answers = [answer for place in state_file.instances() if (answer := ask_instance(place))]
    except CertfsError:
        # Where this user's own mounts would be noted cannot be used; how the host is, is for everybody.
        if host := ask_host():
            return [host]
        raise
    if not answers and (host := ask_host()):
        return [host]
    if not answers:
        raise NotMountedError(
            "you have no certfs mounted",
            advice="certfs mount --help says how, or name a mountpoint",
        )
    of_the_host = [answer for answer in answers if answer.state and answer.state.mode == "dom0"]
    return of_the_host or answers


def _at(mountpoint: str) -> Answer | None:
    try:
        return ask_instance(find(mountpoint))
    except (NotMountedError, PrivilegeError) as error:
        where = canonical(mountpoint)
        host = ask_host()
        is_the_hosts = host is not None and any(
            each.target == where for each in host.status().mounts
        )
        answer = host if is_the_hosts else ask_mount(where)
        if answer is None and isinstance(error, PrivilegeError):
            raise
        return answer


def _shown(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return ``value`` with everything escaped that a terminal would act on: a mount says of itself what it likes."""
    match value:
        case str():
            return printable(value)
        case dict():
            return {key: _shown(each) for key, each in value.items()}
        case list() | tuple():
            return [_shown(each) for each in value]
    return value


def _lines(status: dict[str, Any]) -> Iterator[str]:
    for each in status["mounts"]:
        same = each["store"] in {each["target"], None}
        store = "" if same else f"  (store {each['store']})"
        yield click.style(each["target"], bold=True) + store
    yield f"  state        {_state(status)}"
    if status["next_start"]:
        seconds = max(0.0, seconds_of(status["next_start"]) - time.time())
        tries = f"{_command('restart', status)} tries at once"
        yield f"  next start   in {seconds:.0f} s, after several crashes; {tries}"
    yield f"  since        {status['since']}"
    if status["config_file"]:
        yield f"  config       {status['config_file']}"
    if status["phase"] != "dead":
        yield from _process_lines(status)
    if status["log"]:
        yield f"  log          {status['log']}"
    for bundle in status["bundles"] or ():
        yield from _bundle_lines(bundle)
    for reader in status["notify"]:
        yield from _reader_lines(reader)
    events = (status["events"] or ())[-_LAST_EVENTS:]
    for event in events:
        yield f"  {event['at']}  {event['kind']}: {event['detail']}{_times(event)}"


def _state(status: dict[str, Any]) -> str:
    phase = _PHASES[status["phase"]]
    if status["phase"] == "serving" and not status["answering"]:
        phase = "NOT ANSWERING"
    if status["phase"] == "dead":
        phase += f"; {_again(status)} serves it again, {_command('unmount', status)} takes it away"
    return click.style(phase, fg="green" if phase == "serving" else "red")


def _command(name: str, status: dict[str, Any]) -> str:
    return state_file.command_at(name, status["mode"], status["mounts"][0]["target"])


def _again(status: dict[str, Any]) -> str:
    """Return the command line that mounts it as it was."""
    store, config = status["mounts"][0]["store"], status["config_file"]
    given = {"--store": store, "--config": config} if status["mode"] == "standalone" else {}
    words = (f"{option} {shlex.quote(value)}" for option, value in given.items() if value)
    return _command(" ".join(("mount", *words)), status)


def _process_lines(status: dict[str, Any]) -> Iterator[str]:
    for name in ("server", "supervisor"):
        if status[name]:
            version = status[name].get("version")
            release = f", certfs {version}" if version else ""
            yield f"  {name:<11}  process {status[name]['pid']}{release}"


def _bundle_lines(bundle: dict[str, Any]) -> Iterator[str]:
    if not bundle["exists"]:
        yield f"  {bundle['bundle']}: absent, no certificate in {bundle['source']}"
    else:
        what = f"{bundle['certificates']} certificates from {bundle['sources']} sources"
        if bundle["sha256"] is None:  # a summary
            yield f"  {bundle['bundle']}: {what}"
            yield f"    last change {bundle['changed']}"
        else:
            size = f"{bundle['size']} bytes, generation {bundle['generation']}"
            yield f"  {bundle['bundle']}: {what}, {size}"
            yield f"    sha256 {bundle['sha256']}, last change {bundle['changed']}"
    if bundle["swap"]:
        yield "    a swap of the source directory is in progress"
    if bundle["left_out"] is None and bundle["left_out_count"]:
        text = f"    {bundle['left_out_count']} left out, wholly or in part: root can see which"
        yield click.style(text, fg="yellow")
    for remark in bundle["left_out"] or ():
        line = f" line {remark['line']}" if remark["line"] else ""
        yield click.style(
            f"    left out: {remark['source']}{line}: {remark['reason']}", fg="yellow"
        )
    if not bundle["plain_copy"]["current"]:
        reason = bundle["plain_copy"]["error"] or "being written"
        yield click.style(f"    the store's plain copy is not current: {reason}", fg="yellow")


def _reader_lines(reader: dict[str, Any]) -> Iterator[str]:
    about = f" ({reader['bundle']})" if reader["bundle"] else ""
    told = reader["last_success"] or "not yet"
    due = ", one is due" if reader["waiting"] and not reader["failures"] else ""
    runs = f"{reader['runs']} attempts so far{due}"
    yield f"  notify       {printable(reader['target'])}{about}: told {told}; {runs}"
    if reader["failures"]:
        failing = (
            f"    failed {reader['failures']} times in a row: {printable(reader['last_error'])}"
        )
        yield click.style(failing, fg="yellow")


def _times(event: dict[str, Any]) -> str:
    parts = [
        f"{what} after {event[key]:.2f} s"
        for what, key in (("plain", "plain_seconds"), ("live", "live_seconds"))
        if event[key] is not None
    ]
    return f" ({', '.join(parts)})" if parts else ""
