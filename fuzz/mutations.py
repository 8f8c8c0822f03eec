"""Ways to damage a file: its bytes, text or values; each draws from a generator, so that it repeats."""

import copy
import gzip
import json
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

#: Bytes that numbers of a header may become: edges of their types, what is no number, what is far too large.
_EDGES: tuple[bytes, ...] = (
    *(n.to_bytes(2, "little", signed=True) for n in (0, -1, 1, 2, 32767, -32768, 16, 64, 128, 2048)),
    *(n.to_bytes(4, "little", signed=True) for n in (0, -1, 1, 2**31 - 1, -(2**31), 348, 540, 65536)),
    *(n.to_bytes(8, "little", signed=True) for n in (0, -1, 2**63 - 1, -(2**63), 2**40)),
    *(
        bytes.fromhex(text)
        for text in ("0000c07f", "0000807f", "000080ff", "ffff7f7f", "00000080", "01000000")
    ),
    *(bytes.fromhex(text) for text in ("000000000000f87f", "000000000000f07f", "ffffffffffffef7f")),
)
#: What stands in a text where a number, a name or a path was.
_WORDS = (
    *("0", "-1", "1e308", "1e999", "NaN", "Infinity", "-Infinity", "9223372036854775808", "1" * 400, "0.1"),
    *(
        "",
        " ",
        "null",
        "true",
        "[]",
        "{}",
        "[[[[[[[[",
        '"',
        "\\",
        "\x00",
        "\x1b[31m",
        "é",
        "𝒳",
        "\u202e",
        "\ufeff",
    ),
    *("../../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "C:\\x", "~", "%s%n", "${HOME}", "x" * 5000),
    *("__import__('os').system('true')", "!!python/object/apply:os.system [true]", "con", "\r", "\n", "\t,"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 256, 2**31, 2**63, 2**70, 10**400, 1e308, -1e308, 0.5, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "0", "x", "../x", "\x00", "é", "\ud800", "x" * 5000),
    *(
        [],
        {},
        [[]],
        [0],
        [None],
        {"": None},
        [1] * 1000,
        {"a": {"b": {"c": []}}},
        [0.0, 0.0, 0.0],
        [[0.0] * 4] * 4,
    ),
)


def damaged_bytes(data: bytes, draw: Random) -> bytes:
    """One to four cuts, flips, copies or numbers of another kind."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_OF_BYTES)(data, draw)
    return data


def damaged_packed(data: bytes, draw: Random) -> bytes:
    """Of a gzip file either the file or what is in it."""
    if draw.random() < 0.3:
        return damaged_bytes(data, draw)
    return gzip.compress(damaged_bytes(gzip.decompress(data), draw), compresslevel=1, mtime=0)


def bomb(draw: Random) -> bytes:
    """A small gzip file of very many zeros, which is no image."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(draw.choice((8, 64)))) + packer.flush()


def damaged_text(data: bytes, draw: Random) -> bytes:
    """Numbers, names and lines of a text replaced, doubled or left out; now and then its bytes."""
    if draw.random() < 0.2:
        return damaged_bytes(data, draw)
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(lines))
        act = draw.randrange(5)
        if act == 0:
            del lines[at]
        elif act == 1:
            lines.insert(at, lines[at])
        elif act == 2:
            lines[at] = draw.choice(_WORDS)
        else:
            pieces = lines[at].replace(",", "\0,\0").replace(" ", "\0 \0").replace("=", "\0=\0").split("\0")
            pieces[draw.randrange(len(pieces))] = draw.choice(_WORDS)
            lines[at] = "".join(pieces)
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damaged_json(data: bytes, draw: Random) -> bytes:
    """Values of a JSON file replaced, left out or renamed; now and then its text."""
    if draw.random() < 0.2:
        return damaged_text(data, draw)
    whole = [json.loads(data)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        holder, key = draw.choice(list(_places(whole)) or [(whole, 0)])
        act = draw.randrange(6)
        if act == 0 and holder is not whole:
            del holder[key]
        elif act == 1 and isinstance(holder, dict):
            holder[draw.choice(_WORDS)] = holder.pop(key)
        elif act == 2 and isinstance(holder, dict):
            holder[draw.choice(_WORDS)] = copy.deepcopy(draw.choice(_VALUES))
        elif act == 3 and isinstance(holder[key], str):
            holder[key] = draw.choice((holder[key] + draw.choice(_WORDS), draw.choice(_WORDS)))
        else:
            holder[key] = copy.deepcopy(draw.choice(_VALUES))
    return json.dumps(whole[0]).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """Every holder and key or index in a structure."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        # Long lists of numbers would hide all else.
        if not (isinstance(inner, list) and len(inner) > 50):
            yield from _places(inner)


def _cut(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _flip(data: bytes, draw: Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        if out:
            out[_near_the_head(len(out), draw)] ^= 1 << draw.randrange(8)
    return bytes(out)


def _edge(data: bytes, draw: Random) -> bytes:
    number = draw.choice(_EDGES)
    number = number if draw.random() < 0.8 else number[::-1]
    at = _near_the_head(len(data), draw) // 2 * 2
    return data[:at] + number + data[at + len(number) :]


def _fill(data: bytes, draw: Random) -> bytes:
    at, length = _near_the_head(len(data), draw), draw.choice((1, 4, 16, 64, 512))
    return data[:at] + draw.choice((b"\0", b"\xff", b"A", b" "))[:1] * length + data[at + length :]


def _leave_out(data: bytes, draw: Random) -> bytes:
    at = _near_the_head(len(data), draw)
    return data[:at] + data[at + draw.choice((1, 2, 8, 64, 1024)) :]


def _insert(data: bytes, draw: Random) -> bytes:
    at = _near_the_head(len(data), draw)
    return data[:at] + draw.randbytes(draw.choice((1, 2, 8, 64, 1024))) + data[at:]


def _double(data: bytes, draw: Random) -> bytes:
    at = _near_the_head(len(data), draw)
    return data + data[at : at + 4096] if draw.random() < 0.5 else data[:at] + data[at:] + data[at:]


def _near_the_head(length: int, draw: Random) -> int:
    """Half of the time in the first 600 bytes, where headers are."""
    return draw.randrange(max(1, min(length, 600) if draw.random() < 0.5 else length))


_OF_BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_cut, _flip, _flip, _edge, _edge, _edge, _fill, _leave_out, _insert, _double),
)
