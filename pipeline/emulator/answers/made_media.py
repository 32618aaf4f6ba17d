"""Media that the emulator makes: small, real files, each a function of its dice."""

from __future__ import annotations

import math
import struct
import zlib

from pipeline.emulator.answers.seeded import Dice

IMAGE_TOKENS = 1290
AUDIO_TOKENS_A_SECOND = 25
BLOCKS = 8  # a side
SIDE = 16  # pixels of a block
RATE = 8000  # Hz
SECONDS = 0.5


def picture(dice: Dice) -> bytes:
    """A PNG of coloured blocks: 128 x 128 pixels, symmetric from left to right."""
    colours = [bytes(dice.below(256) for _ in range(3)) for _ in range(4)]
    rows = []
    for _ in range(BLOCKS):
        half = [dice.pick(colours) * SIDE for _ in range(BLOCKS // 2)]
        rows += [b"\0" + b"".join((*half, *half[::-1]))] * SIDE
    size = BLOCKS * SIDE
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, body)
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows), 1)), (b"IEND", b""))
    )


def tone(dice: Dice) -> bytes:
    """A WAV of half a second: one tone, mono, 8 bits a sample."""
    pitch = 220 + 20 * dice.below(30)
    count = int(RATE * SECONDS)
    samples = bytes(128 + round(100 * math.sin(2 * math.pi * pitch * at / RATE)) for at in range(count))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE, 1, 8)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", count) + samples
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
