#!/usr/bin/env python3
"""Reads a pgkeep repository with nothing of pgkeep's: written from docs/format.md alone, to prove that page.

usage: read_repository.py REPOSITORY KEY_FILE CLUSTER        prints what it finds as JSON
"""
import base64, hashlib, json, os, struct, sys
from blake3 import blake3
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import zstandard

root, key_file, cluster = sys.argv[1:4]
read = lambda name: open(os.path.join(root, name), "rb").read()
derive = lambda context, key: blake3(key, derive_key_context=context).digest()

# §2: the key file names a slot; the slot wraps the keyring.
_, slot_id, digits = open(key_file).read().strip().split(":")
slot = json.loads(read(f"keys/{slot_id}"))
wrapped = base64.b64decode(slot["wrapped"])
slot_key = derive("pgkeep v1 key slot", bytes.fromhex(digits.replace("-", "")))
keyring = AESGCM(slot_key).decrypt(wrapped[:12], wrapped[12:], f"pgkeep v1 key slot {slot_id} {slot['kind']}".encode())
assert keyring[0] == 1 and len(keyring) == 113
repository_id, public_key, writer, private = keyring[1:17], keyring[17:49], keyring[49:81], keyring[81:113]
mac_key, psk = derive("pgkeep v1 header mac", writer), derive("pgkeep v1 hpke psk", writer)
content_key = derive("pgkeep v1 content digest", writer)

# §3: HPKE (RFC 9180), PSK mode, X25519-HKDF-SHA256, HKDF-SHA256, AES-256-GCM.
def extract(salt, data):
    mac = hmac.HMAC(salt or bytes(32), hashes.SHA256()); mac.update(data); return mac.finalize()
def expand(key, info, length):
    out, block, count = b"", b"", 1
    while len(out) < length:
        mac = hmac.HMAC(key, hashes.SHA256()); mac.update(block + info + bytes([count])); block = mac.finalize()
        out, count = out + block, count + 1
    return out[:length]
KEM, SUITE = b"KEM" + bytes.fromhex("0020"), b"HPKE" + bytes.fromhex("002000010002")
lextract = lambda suite, salt, label, data: extract(salt, b"HPKE-v1" + suite + label + data)
lexpand = lambda suite, key, label, info, n: expand(key, struct.pack(">H", n) + b"HPKE-v1" + suite + label + info, n)
def unwrap(encapsulated, sealed, aad):
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(encapsulated))
    secret = lexpand(KEM, lextract(KEM, b"", b"eae_prk", shared), b"shared_secret", encapsulated + public_key, 32)
    context = b"\x01" + lextract(SUITE, b"", b"psk_id_hash", b"pgkeep v1 writer")
    context += lextract(SUITE, b"", b"info_hash", b"pgkeep v1 object key" + repository_id)
    secret = lextract(SUITE, secret, b"secret", psk)
    nonce = lexpand(SUITE, secret, b"base_nonce", context, 12)
    return AESGCM(lexpand(SUITE, secret, b"key", context, 32)).decrypt(nonce, sealed, aad)

def open_header(name, kind, data):
    """§3.1: returns (opener of frames, public bytes, header length)."""
    assert data[:8] == b"PGKEEP\0\x01" and data[8] == kind and data[9] == 0
    end = 92 + struct.unpack("<H", data[10:12])[0]
    place = repository_id + bytes([kind]) + struct.pack("<H", len(name)) + name.encode()
    assert blake3(repository_id + place[17:] + data[:end], key=mac_key).digest() == data[end : end + 32]
    cipher = AESGCM(unwrap(data[12:44], data[44:92], place))
    frame = lambda n, sealed, last: cipher.decrypt(struct.pack(">IQ", last, n), sealed, place + struct.pack("<Q", n))
    return frame, data[92:end], end + 32
def open_stream(name, kind):
    """§3.2: returns (public bytes, plaintext frames)."""
    data = read(name); frame, public, at = open_header(name, kind, data); frames = []
    while at < len(data):
        (length,) = struct.unpack("<I", data[at : at + 4]); at += 4 + length
        frames.append(frame(len(frames), data[at - length : at], at == len(data)))
    return public, frames
unpack = lambda encoding, data, size: zstandard.decompress(data, max_output_size=size) if encoding else data

def open_pack(pack):
    """§4: the plaintext of every chunk."""
    name = f"packs/{pack.hex()[:2]}/{pack.hex()}"; data = read(name)
    table_len, count = struct.unpack("<II", data[-16:-8]); footer = len(data) - 140
    assert data[-8:] == b"PGKPACK\x01"
    frame, _, _ = open_header(name, 1, data[footer:])
    table, at, chunks = frame(count, data[footer - table_len : footer], 1), 0, []
    for number in range(count):
        stored, plain, encoding = struct.unpack("<IIB", table[5 + 42 * number :][:9])
        chunks.append(unpack(encoding, frame(number, data[at : at + stored], 0), plain)); at += stored
    return chunks
def protobuf(data):
    """Field number -> list of values; varints as int, length-delimited as bytes, fixed as bytes."""
    fields, at = {}, 0
    def varint():
        nonlocal at; value = shift = 0
        while True:
            byte = data[at]; at += 1; value |= (byte & 127) << shift; shift += 7
            if byte < 128: return value
    while at < len(data):
        tag = varint(); kind = tag & 7
        if kind == 0: value = varint()
        else:
            size = varint() if kind == 2 else {1: 8, 5: 4}[kind]; value = data[at : at + size]; at += size
        fields.setdefault(tag >> 3, []).append(value)
    return fields
def varints(data):
    out, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift; shift += 7
        if byte < 128: out.append(value); value = shift = 0
    return out

packs, found = {}, {"repository": repository_id.hex(), "files": {}, "wal": {}}
def content(pack, chunk, offset, length):
    if pack not in packs: packs[pack] = open_pack(pack)
    chunks, out = packs[pack], b""
    while len(out) < length: out += chunks[chunk][offset:]; chunk, offset = chunk + 1, 0
    return out[:length]
quads = lambda ids, field: [(ids[n[0]], *n[1:]) for n in zip(*[iter(varints(b"".join(field)))] * 4)]
for id in sorted(os.listdir(os.path.join(root, f"clusters/{cluster}/backups"))):
    manifest = protobuf(b"".join(open_stream(f"clusters/{cluster}/backups/{id}", 2)[1]))
    for page in map(protobuf, manifest.get(12, [])):
        listing = content(page[3][0], page.get(4, [0])[0], page.get(5, [0])[0], page[6][0])
        assert blake3(listing, key=content_key).digest() == page[2][0]
        listing = protobuf(listing)
        for entry in map(protobuf, listing.get(2, [])):
            if entry.get(2, [0])[0] == 0:
                extents = quads(listing.get(1, []), entry.get(9, []))
                for leaf in quads(listing.get(1, []), entry.get(10, [])):
                    leaf = protobuf(content(*leaf)); extents += quads(leaf[1], leaf[2])
                whole = hashlib.sha256(b"".join(content(*extent) for extent in extents)).hexdigest()
                found["files"].setdefault(id, {})[entry[1][0].decode()] = whole
for folder, _, names in os.walk(os.path.join(root, f"clusters/{cluster}/wal")):
    for name in names:
        public, frames = open_stream(os.path.relpath(os.path.join(folder, name), root), 3)
        plain = b"".join(unpack(f[0], f[5:], struct.unpack("<I", f[1:5])[0]) for f in frames[1:])
        assert blake3(plain, key=content_key).digest() == public[:32] and len(plain) == struct.unpack("<Q", public[32:])[0]
        found["wal"][name] = hashlib.sha256(plain).hexdigest()
print(json.dumps(found, indent=1, sort_keys=True))
