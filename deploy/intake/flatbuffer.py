"""Walk a flatbuffer by a schema with every offset checked against the bytes that are there."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

MAX_OBJECTS = 100_000  # tables and vectors; offsets may share targets, so a small file can hold many
MAX_NESTING = 16

# A field's type: a scalar's letter as in `struct`; "str"; "[x]" a vector of scalars x or of tables X;
# a table's name; or a function that picks the type of a union from the fields read before it.
FieldType = str | Callable[[Mapping[str, Any]], str | None]
Schema = Mapping[str, Mapping[int, tuple[str, FieldType]]]
_SCALARS = {"b": 1, "B": 1, "?": 1, "h": 2, "H": 2, "i": 4, "I": 4, "f": 4, "q": 8, "Q": 8, "d": 8}


class FlatbufferError(Exception):
    """A sentence about where the bytes contradict the format."""


class FlatbufferWalker:
    """Reads tables of one buffer into dictionaries; large byte vectors stay (start, length) pairs."""

    def __init__(self, data: bytes, schema: Schema) -> None:
        self.data = data
        self.schema = schema
        self._objects = 0

    def read_root(self, table: str, identifier: bytes) -> dict[str, Any]:
        """The root table as nested dictionaries, absent fields as None.

        Raises:
            FlatbufferError: an offset outside the file, an unknown field, or too many objects.
        """
        if len(self.data) < 8 or self.data[4:8] != identifier:
            raise FlatbufferError(f"does not begin with the mark {identifier.decode()}")
        return self._read_table(self._unsigned(0, "the root"), table, 0)

    def _unpack(self, letter: str, place: int, what: str) -> Any:
        size = _SCALARS[letter]
        if not 0 <= place <= len(self.data) - size:
            raise FlatbufferError(f"{what} lies at byte {place}, outside the file's {len(self.data)}")
        return struct.unpack_from(f"<{letter}", self.data, place)[0]

    def _unsigned(self, place: int, what: str) -> int:
        return int(self._unpack("I", place, what))

    def _count(self, what: str, nesting: int) -> None:
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise FlatbufferError(f"holds more than {MAX_OBJECTS:,} objects")
        if nesting > MAX_NESTING:
            raise FlatbufferError(f"nests {what} deeper than {MAX_NESTING}")

    def _read_table(self, place: int, table: str, nesting: int) -> dict[str, Any]:
        self._count(table, nesting)
        vtable = place - int(self._unpack("i", place, table))
        vtable_bytes = int(self._unpack("H", vtable, f"{table}'s field list"))
        table_bytes = int(self._unpack("H", vtable + 2, f"{table}'s field list"))
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable + vtable_bytes > len(self.data):
            raise FlatbufferError(f"{table}'s field list is damaged")
        if table_bytes < 4 or place + table_bytes > len(self.data):
            raise FlatbufferError(f"{table} reaches outside the file")
        fields = self.schema[table]
        values: dict[str, Any] = {name: None for name, _ in fields.values()}
        for index in range((vtable_bytes - 4) // 2):
            offset = int(self._unpack("H", vtable + 4 + 2 * index, f"{table}'s field list"))
            if offset == 0:
                continue
            if index not in fields:
                raise FlatbufferError(f"{table} has a field number {index}, which is not known here")
            name, kind = fields[index]
            if not 4 <= offset < table_bytes:
                raise FlatbufferError(f"{table}.{name} lies outside its table")
            picked = kind if isinstance(kind, str) else kind(values)
            if picked is None:
                raise FlatbufferError(f"{table}.{name} has no type")
            values[name] = self._read_field(place + offset, picked, f"{table}.{name}", nesting)
        return values

    def _read_field(self, place: int, kind: str, what: str, nesting: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(kind, place, what)
        target = place + self._unsigned(place, what)
        if kind == "str":
            start, count = self._read_vector(target, 1, what, nesting)
            if start + count >= len(self.data) or self.data[start + count]:
                raise FlatbufferError(f"{what} is text without an end")
            return self.data[start : start + count].decode("utf-8", "strict")
        if not kind.startswith("["):
            return self._read_table(target, kind, nesting + 1)
        inner = kind[1:-1]
        if inner == "bytes":
            return self._read_vector(target, 1, what, nesting)
        size = _SCALARS.get(inner, 4)
        start, count = self._read_vector(target, size, what, nesting)
        if inner in _SCALARS:
            return struct.unpack_from(f"<{count}{inner}", self.data, start)
        places = range(start, start + 4 * count, 4)
        return [self._read_table(p + self._unsigned(p, what), inner, nesting + 1) for p in places]

    def _read_vector(self, place: int, size: int, what: str, nesting: int) -> tuple[int, int]:
        self._count(what, nesting)
        count = self._unsigned(place, what)
        if place + 4 + count * size > len(self.data):
            raise FlatbufferError(f"{what} lists {count} entries, more than the file holds")
        return place + 4, count
