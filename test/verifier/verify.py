#!/usr/bin/env python3
"""Verify bundles of Meshvakt's evidence with nothing but Python's standard library.

    verify.py BUNDLE.zip [VERIFIER-KEY]

It shares no code with Meshvakt. It checks the signature of the checkpoint (RFC 8032), the
root over all entries (RFC 6962), that each record follows the one before it, and prints
origin, size and root. Without a key it takes the one in the bundle, which shows that the log
is whole and not whose it is. It knows nothing of what records mean.

Exit status: 0 the log is whole, 3 it is not, 4 the command is wrong.
"""
import base64, hashlib, json, struct, sys, zipfile

MOST_RECORD, MOST_CHECKPOINT = 16 << 10, 64 << 10

# Ed25519, by the formulas of RFC 8032.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
I = pow(2, (P - 1) // 4, P)


def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add(q, p)
        p, n = add(p, p), n >> 1
    return q


def point(raw):
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        raise Broken("a point is out of range")
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * I % P
    if (x * x - x2) % P or (x == 0 and sign):
        raise Broken("a point is not on the curve")
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def signed(key, message, signature):
    if len(key) != 32 or len(signature) != 64:
        return False
    try:
        a, r = point(key), point(signature[:32])
    except Broken:
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    base = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    left, right = times(s, base), add(r, times(h, a))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


class Broken(Exception):
    """What is wrong with a log."""


def require(holds, what):
    if not holds:
        raise Broken(what)


def read(bundle, name, most):
    try:
        with bundle.open(name) as f:
            data = f.read(most + 1)
    except (KeyError, zipfile.BadZipFile, OSError, NotImplementedError) as e:
        raise Broken(f"{name} cannot be read: {e}") from None
    require(len(data) <= most, f"{name} is too long")
    return data


def tile_path(kind, n, width):
    parts = [f"{n % 1000:03d}"]
    while n >= 1000:
        n //= 1000
        parts.insert(0, f"x{n % 1000:03d}")
    return f"tile/{kind}/{'/'.join(parts)}" + (f".p/{width}" if width < 256 else "")


def root_over(leaves):
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + root_over(leaves[:k]) + root_over(leaves[k:])).digest()


def checkpoint(note, vkey):
    text, separator, signatures = note.partition("\n\n")
    require(separator, "the checkpoint has no signature")
    lines = text.split("\n")
    require(len(lines) == 3 and lines[1].isdigit(), "the checkpoint is not of origin, size and root")
    name, key_hash, key = vkey.split("+", 2)
    raw = base64.b64decode(key, validate=True)
    want = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    require(raw[:1] == b"\1" and want.hex() == key_hash, "the key is not an Ed25519 verifier key")
    require(lines[0] == name, f"the checkpoint is of {lines[0]} and the key of {name}")
    for line in signatures.splitlines():
        mark, _, rest = line.partition(" ")
        who, _, signature = rest.partition(" ")
        require(mark == "—", "a line of the checkpoint is not a signature")
        raw_signature = base64.b64decode(signature, validate=True)
        if who == name and raw_signature[:4] == want:
            require(signed(raw[1:], (text + "\n").encode(), raw_signature[4:]), "the signature of the checkpoint is false")
            return name, int(lines[1]), base64.b64decode(lines[2], validate=True)
    raise Broken("the key has not signed the checkpoint")


def entries(bundle, size):
    for first in range(0, size, 256):
        width = min(256, size - first)
        data, at = read(bundle, tile_path("entries", first // 256, width), 256 * (MOST_RECORD + 2)), 0
        for _ in range(width):
            require(at + 2 <= len(data), f"entry {first} and those behind it are cut off")
            (length,) = struct.unpack_from(">H", data, at)
            require(at + 2 + length <= len(data), f"entry {first} and those behind it are cut off")
            yield data[at + 2:at + 2 + length]
            at += 2 + length
        require(at == len(data), "a bundle of entries has more than its checkpoint says")


def follow(seq, line, before, origin):
    record = json.loads(line)
    require(isinstance(record, dict) and record.get("v") == 1, f"record {seq} is of another version")
    require(record.get("seq") == seq, f"record {seq} has another number")
    require((record.get("kind") == "genesis") == (seq == 0), f"record {seq} is {record.get('kind')}")
    if seq == 0:
        require(record.get("origin") == origin, "the first record is of another log")
    else:
        require(record.get("prev") == before, f"record {seq} does not follow the one before it")
    return hashlib.sha256(line).hexdigest()


def verify(path, key):
    with zipfile.ZipFile(path) as bundle:
        names = bundle.namelist()
        require(len(set(names)) == len(names), "the bundle has a file twice")
        vkey = key or read(bundle, "keys", MOST_CHECKPOINT).decode().split("\n")[0]
        origin, size, root = checkpoint(read(bundle, "checkpoint", MOST_CHECKPOINT).decode(), vkey)
        require(size > 0, "the log is empty")
        leaves, before = [], ""
        for seq, line in enumerate(entries(bundle, size)):
            before = follow(seq, line, before, origin)
            leaves.append(hashlib.sha256(b"\0" + line).digest())
        require(root_over(leaves) == root, "the entries make another root than the checkpoint says")
        return origin, size, base64.b64encode(root).decode()


def main(arguments):
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 4
    try:
        print(*verify(*(arguments + [None])[:2]))
    except (Broken, ValueError, zipfile.BadZipFile) as e:
        print(f"{arguments[0]}: {e}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
