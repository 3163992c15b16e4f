"""Seeded damage to models: blind on bytes, and by structure on JSON, protobuf and flatbuffer objects."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

INTERESTING = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 1023, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_HUGE = (*INTERESTING, 2**53, 2**62, 2**63 - 1, -(2**31), -(2**63))
_WORDS = ("", "image", "../x", "/etc/passwd", "..", "a/b", "\x00", "fgbg", "x" * 5000, "file:///x", "ü\u202e")
_VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 1e308, 2**63, [], {}, [[[[]]]], *_WORDS)
Mutation = Callable[[bytearray, random.Random], None]


def _place(data: bytearray, rng: random.Random) -> int:
    """Structure sits at the ends of most formats, weights in between: half of the damage goes there."""
    if rng.random() < 0.5:
        edge = min(len(data), 4096)
        return rng.randrange(edge) if rng.random() < 0.5 else len(data) - 1 - rng.randrange(edge)
    return rng.randrange(len(data))


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, rng: random.Random) -> None:
    data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def splice(data: bytearray, rng: random.Random) -> None:
    source, target, size = _place(data, rng), _place(data, rng), rng.choice((1, 4, 16, 64, 512))
    data[target : target + size] = data[source : source + size]


def duplicate(data: bytearray, rng: random.Random) -> None:
    source, size = _place(data, rng), rng.choice((1, 4, 32, 256, 4096))
    data[source:source] = data[source : source + size]


def delete(data: bytearray, rng: random.Random) -> None:
    source = _place(data, rng)
    del data[source : source + rng.choice((1, 2, 4, 16, 256))]


def set_number(data: bytearray, rng: random.Random) -> None:
    """A length, an offset, a count: a little-endian number of some width, aligned more often than not."""
    letter = rng.choice("HIIQ")
    size = struct.calcsize(letter)
    at = min(_place(data, rng), max(0, len(data) - size))
    if rng.random() < 0.8:
        at -= at % size
    value = rng.choice((*_HUGE, len(data), len(data) - at, at))
    data[at : at + size] = struct.pack(f"<{letter}", value % 256**size)


def set_varint(data: bytearray, rng: random.Random) -> None:
    """protobuf's numbers: seven bits a byte."""
    value = rng.choice(_HUGE) % 2**64
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    at = _place(data, rng)
    data[at : at + rng.choice((0, 1, 1, 2))] = bytes([*encoded, value])


BLIND: tuple[Mutation, ...] = (
    flip_bits, flip_bits, set_byte, truncate, splice, duplicate, delete, set_number, set_number, set_varint,
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three blind mutations."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not changed:
            break
        rng.choice(BLIND)(changed, rng)
    return bytes(changed)


# -- JSON ------------------------------------------------------------------------------------------


def damage_json(text: str, rng: random.Random) -> str:
    """Replace, delete or repeat a value anywhere in a document."""
    document = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = _pick_json(document, rng)
        if holder is None:
            break
        how = rng.randrange(6)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif how == 2 and isinstance(holder[key], int | str) and not isinstance(holder[key], bool):
            number = rng.choice(_HUGE)
            holder[key] = number if isinstance(holder[key], int) else str(number)
        elif how == 3 and isinstance(holder, dict):
            holder[rng.choice(_WORDS)] = holder.pop(key)
        elif how == 4:
            other, place = _pick_json(document, rng)
            if other is not None:
                holder[key] = json.loads(json.dumps(other[place]))
        else:
            holder[key] = rng.choice(_VALUES)
    done = json.dumps(document)
    if rng.random() < 0.03:
        return done.replace("1", rng.choice(("NaN", "Infinity", "1e999", "-0", "[" * 20_000)), 1)
    return done


def _pick_json(document: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container and a key in it, every depth equally likely."""
    holder, key = None, None
    current = document
    for _ in range(rng.randrange(1, 9)):
        if not isinstance(current, dict | list) or not current:
            break
        holder = current
        key = rng.choice(list(current)) if isinstance(current, dict) else rng.randrange(len(current))
        current = current[key]
    return holder, key


# -- protobuf --------------------------------------------------------------------------------------


def damage_message(message: Any, rng: random.Random) -> None:
    """Change a leaf, or drop or repeat an element, anywhere in a protobuf message."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        current = message
        for _ in range(rng.randrange(1, 14)):
            fields = [
                (field, value)
                for field, value in current.ListFields()
                if not (field.message_type and field.message_type.GetOptions().map_entry) or len(value)
            ]
            if not fields:
                break
            field, value = rng.choice(fields)
            following = _change_field(current, field, value, rng)
            if following is None:
                break
            current = following


def _change_field(message: Any, field: Any, value: Any, rng: random.Random) -> Any:
    """Descend into a message and return it, or damage what is here and return None."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        chosen = value[rng.choice(sorted(value))]
        return chosen if hasattr(chosen, "ListFields") else None
    if isinstance(value, bool | int | float | str | bytes):
        setattr(message, field.name, _other_scalar(value, field, rng))
        return None
    if not hasattr(value, "ListFields"):
        return _change_element(field, value, rng)
    if rng.random() >= 0.03:
        return value
    message.ClearField(field.name)
    return None


def _change_element(field: Any, values: Any, rng: random.Random) -> Any:
    """As ``_change_field`` for one element of a repeated field."""
    index, roll = rng.randrange(len(values)), rng.random()
    if roll < 0.04:
        del values[index]
    elif field.message_type:
        if roll > 0.08:
            return values[index]
        values.add().CopyFrom(values[rng.randrange(len(values))])
    elif roll < 0.15:
        values.append(values[index])
    else:
        values[index] = _other_scalar(values[index], field, rng)
    return None


# Of protobuf's whole numbers, by FieldDescriptor.CPPTYPE_*.
_RANGES = {1: (-(2**31), 2**31 - 1), 2: (-(2**63), 2**63 - 1), 3: (0, 2**32 - 1), 4: (0, 2**64 - 1)}


def _other_scalar(value: Any, field: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        low, high = _RANGES.get(field.cpp_type, _RANGES[1])
        if field.enum_type:
            return rng.choice([number.number for number in field.enum_type.values])
        wish = rng.choice((value + 1, value - 1, value * 2, -value, rng.choice(_HUGE)))
        return max(low, min(high, wish))
    if isinstance(value, float):
        return rng.choice((0.0, -value, value * 1000, float("nan"), float("inf"), 1e38))
    if isinstance(value, str):
        return rng.choice((*_WORDS, value + "x", value[:-1]))
    return damage_bytes(value, rng) if value else b"\0"


# -- flatbuffer objects ----------------------------------------------------------------------------


def damage_tflite(data: bytes, rng: random.Random) -> bytes:
    """Unpack into objects, change some, pack again: sound flatbuffers with unsound content."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _damage_object(model, rng)
    builder = flatbuffers.Builder(len(data) + 4096)
    try:
        builder.Finish(model.Pack(builder), b"TFL3")
    except Exception:  # what cannot be packed cannot be in a file
        return damage_bytes(data, rng)
    return bytes(builder.Output())


def _damage_object(root: Any, rng: random.Random) -> None:
    current = root
    for _ in range(rng.randrange(2, 9)):
        fields = [(key, value) for key, value in vars(current).items() if value is not None]
        if not fields:
            return
        key, value = rng.choice(fields)
        if hasattr(value, "__dict__") and rng.random() >= 0.05:
            current = value
        elif hasattr(value, "__dict__"):
            setattr(current, key, None)
            return
        elif isinstance(value, bool | int | float | bytes):
            setattr(current, key, _other_plain(value, rng))
            return
        elif not len(value):
            return
        elif hasattr(value[0], "__dict__"):
            current = _pick_element(value, rng)
            if current is None:
                return
        else:
            plain = [v.item() if hasattr(v, "item") else v for v in value]
            setattr(current, key, _other_list(plain, rng))
            return


def _pick_element(values: list[Any], rng: random.Random) -> Any:
    """An element to go on with; None after one was dropped or repeated instead."""
    index = rng.randrange(len(values))
    if (roll := rng.random()) < 0.03:
        del values[index]
        return None
    if roll < 0.06:
        values.append(values[index])
        return None
    return values[index]


def _other_list(values: list[Any], rng: random.Random) -> Any:
    import numpy as np

    how = rng.randrange(4)
    if how == 0:
        del values[rng.randrange(len(values))]
    elif how == 1:
        values.append(rng.choice(values))
    else:
        at = rng.randrange(len(values))
        values[at] = _other_plain(values[at], rng)
    if all(isinstance(v, int) and 0 <= v < 256 for v in values) and len(values) > 8:
        return np.asarray(values, np.uint8)
    return values


def _other_plain(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value * 2, rng.choice(INTERESTING[:-2])))
    if isinstance(value, float):
        return rng.choice((0.0, -value, float("nan"), float("inf")))
    return rng.choice(_WORDS).encode("utf-8", "replace")


# -- folders ---------------------------------------------------------------------------------------


def damage_folder(folder: Path, rng: random.Random) -> None:
    """What happens to folders: files lost, added, emptied, exchanged, renamed, replaced by links."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    one, other = rng.choice(files), rng.choice(files)
    how = rng.randrange(7)
    if how == 0:
        one.unlink()
    elif how == 1:
        (one.parent / rng.choice(("extra.bin", ".DS_Store", "weight2.bin", "model2.json"))).write_bytes(
            b"extra"
        )
    elif how == 2:
        one.write_bytes(b"")
    elif how == 3:
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    elif how == 4:
        one.rename(one.with_name(f"{one.name}x"))
    elif how == 5:
        one.unlink()
        one.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "..", str(other))))
    else:
        one.unlink()
        one.mkdir()
