"""Reads a GGUF v3 file's metadata with nothing but the standard library (an oracle apart from formats/gguf.cc)."""
import struct

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


def read_metadata(path):
    with open(path, "rb") as f:
        def take(form):
            return struct.unpack(form, f.read(struct.calcsize(form)))[0]

        def text():
            return f.read(take("<Q")).decode("utf-8")

        def value(kind):
            if kind == 8:
                return text()
            if kind == 9:
                inner, count = take("<I"), take("<Q")
                return [value(inner) for _ in range(count)]
            return take(_SCALARS[kind])

        if f.read(4) != b"GGUF" or take("<I") != 3:
            raise ValueError(f"{path}: not a GGUF v3 file")
        take("<Q")
        return {text(): value(take("<I")) for _ in range(take("<Q"))}
