"""A measurement that can be interrupted: one JSON line of settings, then one for every piece of it that is done."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any


class StateFile:
    """Records by what they have as `key`, a document's number unless it is named, kept in `path`; None: in memory only.

    settings: whatever decides the figures. A file of other settings is refused with ValueError, naming the first that
    differs; a last line that an interruption cut short is dropped, the line of settings too.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], key: str = "document") -> None:
        self.path, self.key = path, key
        self.settings = json.loads(json.dumps(settings))
        self.records: dict[Any, dict[str, Any]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size and not self._is_torn_header(path):
            self._read(path)
        else:
            path.write_text(json.dumps(self.settings) + "\n", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        """Keep the record of one piece."""
        record = json.loads(json.dumps(record))  # as a later run reads it
        self.records[record[self.key]] = record
        if self.path is not None:
            self._append(record)

    def _append(self, record: dict[str, Any]) -> None:
        assert self.path is not None, "only called with a file"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _is_torn_header(self, path: Path) -> bool:
        """Whether a file without a whole line is the beginning of what this run would write first."""
        content = path.read_bytes()
        return b"\n" not in content and json.dumps(self.settings).encode().startswith(content)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        try:
            header, *records = [json.loads(line) for line in complete.decode("utf-8").splitlines()]
            self.records = {record[self.key]: record for record in records}
            keys = sorted({*header.keys(), *self.settings})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"resume must be a state file of this command, got {path}") from None
        if header != self.settings:
            other = next(key for key in keys if header.get(key) != self.settings.get(key))
            raise ValueError(
                f"resume must be of a run with the same {other}, {reprlib.repr(self.settings.get(other))}, "
                f"got {reprlib.repr(header.get(other))} in {path}"
            )
        if len(complete) < len(content):
            path.write_bytes(complete)
