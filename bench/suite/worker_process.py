"""A process that answers a JSON line with a JSON line, and what is said when it does not."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NUM_LAST_LINES, CHUNK_BYTES = 12, 2**16
END_SECONDS = 20.0  # for a process whose input has ended


class WorkerProcess:
    """`command` with `environment`, its stderr appended to `log`; `name` is what errors call it.

    It is in a session of its own, so that an interrupt reaches this process alone, which then closes it. It ends with
    its input, so it does not outlive this process either.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, directory: Path
    ) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environment),
                cwd=directory,
                bufsize=0,
                start_new_session=True,
            )
        self._received = b""

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer. Raises ChildProcessError where it has ended or says something else, TimeoutError after `seconds`,
        both with the end of its log; the process is gone then."""
        try:
            self._write(json.dumps(message).encode() + b"\n")
            line = self._read_line(time.monotonic() + seconds)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self._kill()
            raise TimeoutError(f"{self.name} did not answer within {seconds:g} s; {self._last_lines()}") from None
        if not line:
            raise ChildProcessError(f"{self.name} {self._how_it_ended()}; {self._last_lines()}")
        try:
            return json.loads(line)
        except ValueError:
            self._kill()
            said = f"{self.name} must answer with JSON, got {line[:200]!r}"
            raise ChildProcessError(f"{said}; {self._last_lines()}") from None

    def close(self) -> None:
        """End it, by force if it does not end with its input. Closed twice is closed."""
        assert self._process.stdin is not None, "made with a pipe"
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
        assert self._process.stdout is not None, "made with a pipe"
        self._process.stdout.close()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None, "made with a pipe"
        while line:
            line = line[self._process.stdin.write(line) :]

    def _read_line(self, deadline: float) -> bytes:
        """Without its end; empty where the process has closed its output. TimeoutError behind the deadline."""
        assert self._process.stdout is not None, "made with a pipe"
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), CHUNK_BYTES)
                if not chunk:
                    return b""
                self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            return "closed its output"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

    def _kill(self) -> None:
        """With whatever it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _last_lines(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()][-NUM_LAST_LINES:]
        return f"the end of {self.log}: {' | '.join(lines) or '(nothing)'}"
