"""Programs that watch files, as people use them: each prints a line for what it takes for a change.

Owns how each is started. ``{file}`` and ``{directory}`` stand for what is to be watched.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_WATCHDOG = """
import sys, time
from watchdog.events import FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

class Handler(FileSystemEventHandler):
    def on_any_event(self, event):
        if sys.argv[2] in (event.src_path, event.dest_path) and event.event_type in (
            "created", "moved", "modified", "deleted"):
            print(event.event_type, flush=True)

observer = InotifyObserver()
observer.schedule(Handler(), sys.argv[1])
observer.start()
print("ready", flush=True)
while True:
    time.sleep(60)
"""
_WATCHFILES = """
import sys
from watchfiles import watch

# The first timeout comes when the directory is watched; before, a change would go unnoticed.
is_ready = False
for changes in watch(sys.argv[1], recursive=False, force_polling=False, rust_timeout=500, debounce=50,
                     yield_on_timeout=True):
    if not is_ready:
        is_ready = True
        print("ready", flush=True)
    if any(path == sys.argv[2] for _, path in changes):
        print("change", flush=True)
"""
_NODE = """
const fs = require('fs'), path = require('path');
const [directory, file] = process.argv.slice(1);
fs.watch(directory, (event, name) => { if (name === path.basename(file)) console.log(event); });
console.log('ready');
"""
_CHOKIDAR = """
const chokidar = require(process.argv[1]);
const file = process.argv[3];
const watcher = chokidar.watch(file, { ignoreInitial: true });
watcher.on('all', (event) => console.log(event)).on('ready', () => console.log('ready'));
"""
_GO = """package main

import (
	"fmt"
	"os"

	"github.com/fsnotify/fsnotify"
)

func main() {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		panic(err)
	}
	if err := watcher.Add(os.Args[1]); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	for event := range watcher.Events {
		if event.Name == os.Args[2] {
			fmt.Println(event.Op)
		}
	}
}
"""
_JAVA = """
import java.nio.file.*;

class Watch {
    public static void main(String[] words) throws Exception {
        Path directory = Paths.get(words[0]), name = Paths.get(words[1]).getFileName();
        WatchService service = FileSystems.getDefault().newWatchService();
        directory.register(service, StandardWatchEventKinds.ENTRY_CREATE,
            StandardWatchEventKinds.ENTRY_MODIFY, StandardWatchEventKinds.ENTRY_DELETE);
        System.out.println("ready");
        while (true) {
            WatchKey key = service.take();
            for (WatchEvent<?> event : key.pollEvents())
                if (name.equals(event.context())) System.out.println(event.kind());
            key.reset();
        }
    }
}
"""

# incrond has its tables in a directory, and runs what they say with the machine's /bin/sh; it says nothing itself.
_INCRON = """
set -e
own=$(mktemp -d "$1/incron.XXXXXX")
mkdir "$own/system" "$own/user"
cat >"$own/conf" <<-END
	system_table_dir = $own/system
	user_table_dir = $own/user
	lockfile_dir = $own
	END
printf '#!/bin/sh\\nif [ "$1" = "%s" ]; then echo change >>"%s"; fi\\n' "$3" "$own/said" >"$own/note"
chmod +x "$own/note"
echo "$2 IN_MOVED_TO,IN_CLOSE_WRITE,IN_DELETE $own/note \\$#" >"$own/system/table"
touch "$own/said"
incrond --foreground --config="$own/conf" &
exec tail --follow=name "$own/said"
"""


@dataclass(frozen=True)
class Kind:
    """A way of watching: its ``command``, and what it needs beside it."""

    name: str
    command: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    """Programs to be written into the directory that `Watcher.start` is given, ``{work}``, by name."""
    says_ready: bool = True
    watches: int = 0
    """How many inotify watches it has when it has started, if it does not say so."""
    stdin: str = ""
    follows: bool = True
    """Whether it still watches after the first change: a watch of an inode ends with it."""


def _python(name: str, program: str) -> Kind:
    return Kind(name, (sys.executable, "-c", program, "{directory}", "{file}"))


DEBIAN_AND_PYPI = (
    Kind(
        "inotifywait -m FILE",
        ("inotifywait", "-m", "-e", "attrib,delete_self,move_self,modify,close_write", "{file}"),
        follows=False,
    ),
    Kind(
        "inotifywait -m DIRECTORY",
        (
            "inotifywait",
            "-m",
            "--include",
            "{name}$",
            "-e",
            "moved_to,create,close_write,delete",
            "{directory}",
        ),
    ),
    # envoy's rule for a watched_directory: it takes MOVED_TO of the name, and nothing else, for a change.
    Kind(
        "envoy's rule",
        ("inotifywait", "-m", "--include", "{name}$", "-e", "moved_to", "{directory}"),
    ),
    Kind("entr", ("entr", "-n", "echo", "change"), says_ready=False, watches=1, stdin="{file}\n"),
    _python("watchdog", _WATCHDOG),
    _python("watchfiles", _WATCHFILES),
)
"""What the suite runs."""

OTHERS = (
    Kind(
        "incron", ("sh", "-c", _INCRON, "sh", "{work}", "{directory}", "{name}"), says_ready=False
    ),
    Kind("fs.watch", ("node", "-e", _NODE, "{directory}", "{file}")),
    Kind("chokidar 3", ("node", "-e", _CHOKIDAR, "chokidar3", "{directory}", "{file}")),
    Kind("chokidar 4", ("node", "-e", _CHOKIDAR, "chokidar4", "{directory}", "{file}")),
    Kind("Go fsnotify", ("{work}/watch", "{directory}", "{file}"), {"watch.go": _GO}),
    Kind(
        "Java WatchService",
        ("java", "{work}/Watch.java", "{directory}", "{file}"),
        {"Watch.java": _JAVA},
    ),
)
"""What the nightly run adds: incron, node with chokidar3 and chokidar4 in NODE_PATH, go, a JDK."""


class Watcher:
    """A program that watches one file."""

    def __init__(self, kind: Kind, file: Path, work: Path) -> None:
        self.kind = kind
        words = {
            "file": str(file),
            "directory": str(file.parent),
            "name": file.name,
            "work": str(work),
        }
        for name, text in kind.files.items():
            (work / name).write_text(text, encoding="utf-8")
        self.process = subprocess.Popen(
            [_filled(word, words) for word in kind.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        if kind.stdin:
            self.process.stdin.write(_filled(kind.stdin, words).encode())
        self.process.stdin.close()
        self.said = b""

    def listen(self) -> bytes:
        """Return all that it has said so far."""
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 0)[0]:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                break
            self.said += data
        return self.said

    def has_started(self) -> bool:
        """Whether it says that it watches, or does; one that has ended fails with its words."""
        said = self.listen()
        ended = self.process.poll()
        assert ended is None, f"{self.kind.name}: exit {ended}\n{self.listen().decode()}"
        if not self.kind.says_ready:
            return _watches_of(self.process.pid) >= self.kind.watches
        return b"ready" in said or b"established" in said

    def close(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _watches_of(pid: int) -> int:
    """Count the inotify watches of a process (proc_pid_fdinfo(5))."""
    texts = []
    with suppress(FileNotFoundError):  # of a descriptor that is closed meanwhile
        texts += [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
    return sum(text.count("inotify wd:") for text in texts)


def _filled(text: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        text = text.replace("{" + name + "}", word)
    return text
