"""A terminal of some columns, as far as progress bars use one: what is on its screen after what was written to it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE_S = 60.0
_TOKEN = re.compile(r"\x1b\[(\d*)([A-Za-z])|\x1b\[\?\d+[hl]|[\s\S]")


def screen(written: str, columns: int) -> list[str]:
    """The lines of a screen without end, colours left out, blank lines at its end too."""
    lines: list[list[str]] = [[]]
    row = column = 0
    for found in _TOKEN.finditer(written):
        token, (count, action) = found[0], found.groups()
        if action == "A":
            row = max(0, row - int(count or 1))
        elif action == "J":
            del lines[row + 1 :]
            del lines[row][column:]
        elif token == "\r":
            column = 0
        elif token == "\n":
            row += 1
        elif not token.startswith("\x1b"):
            if column == columns:
                row, column = row + 1, 0
            _put(lines, row, column, token)
            column += 1
        while len(lines) <= row:
            lines.append([])
    shown = ["".join(line).rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def _put(lines: list[list[str]], row: int, column: int, letter: str) -> None:
    while len(lines) <= row:
        lines.append([])
    line = lines[row]
    line.extend(" " * (column + 1 - len(line)))
    line[column] = letter


class Terminal:
    """A process on a pseudo-terminal, and all that it has written there."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], *, columns: int) -> None:
        self.columns = columns
        self.written = ""
        self._rest = b""
        self._ours, theirs = pty.openpty()
        self.resize(columns)
        command = [sys.executable, "-m", "pipeline", *arguments]
        variables = {"TERM": "xterm", "LANG": "C.UTF-8", **environment}
        for name in ("COLUMNS", "CI"):
            variables.pop(name, None)
        self.child = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def resize(self, columns: int) -> None:
        """Makes it wider or narrower."""
        self.columns = columns
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def until(self, shows: Callable[[str], bool]) -> None:
        """Reads on until what was written since now `shows` something; fails when the process ends before."""
        written = ""
        while not shows(written):
            piece = self._read()
            assert piece, f"it has ended, and not shown it: {written!r}"
            written += piece

    def end(self) -> list[str]:
        """Reads until it has ended; what is on the screen then."""
        while self._read():
            pass
        self.child.wait(PATIENCE_S)
        os.close(self._ours)
        return screen(self.written, self.columns)

    def _read(self) -> str:
        while True:
            try:
                self._rest += os.read(self._ours, 65536)
            except OSError:  # how Linux tells that nobody has the other end
                return ""
            try:
                piece = self._rest.decode()
            except UnicodeDecodeError:  # in the middle of a character
                continue
            self._rest = b""
            self.written += piece
            return piece
