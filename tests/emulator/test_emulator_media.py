"""Media in and out."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.emulator import Options
from pipeline.emulator.answers.made_media import picture, tone
from pipeline.emulator.answers.seeded import Dice
from pipeline.emulator.protocol.media import Inspection, Unreadable, inspect
from pipeline.emulator.vertex import emulated
from tests.emulator.requests import Json, asking, chunks, content, deltas, message, refusal

pytestmark = pytest.mark.anyio
MEDIA = Path(__file__).parents[2] / "data" / "media"
FILES = {
    "charts/cheese.png": "image/png 480x320",
    "shapes/three.jpg": "image/jpeg 240x120",
    "shapes/five_dots.webp": "image/webp 96x96",
    "shapes/seven_dots.gif": "image/gif 96x96",
    "shapes/flag.heic": "image/heic 96x64",
    "audio/a4_1s.wav": "audio/wav 1 s, 16000 Hz, mono",
    "audio/a5_2s5.wav": "audio/wav 2.5 s, 8000 Hz, mono",
    "audio/three_beeps.flac": "audio/flac 2.5 s, 16000 Hz, mono",
    "audio/three_beeps.mp3": "audio/mpeg 2.59 s, 16000 Hz, mono",
    "audio/three_beeps.ogg": "audio/ogg 2.5 s, 16000 Hz, mono",
    "audio/three_beeps.m4a": "audio/mp4 2.5 s",
    "docs/notice.pdf": "application/pdf 1 page",
    "docs/manual.pdf": "application/pdf 3 pages",
    "video/four_seven.mp4": "video/mp4 160x120, 2 s",
}
CHECKED = ("charts/cheese.png", "shapes/three.jpg", "shapes/five_dots.webp", "shapes/seven_dots.gif", "audio/a4_1s.wav")
CHECKED_TOO = ("shapes/flag.heic", "audio/three_beeps.m4a", "docs/notice.pdf", "video/four_seven.mp4")


def read(name: str) -> bytes:
    return (MEDIA / name).read_bytes()


def data_url(data: bytes, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


def image(url: str, *, bare: bool = False) -> Json:
    return {"type": "image_url", "image_url": url if bare else {"url": url}}


def audio(data: bytes, form: str) -> Json:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def showing(*parts: Json, **more: Any) -> Json:
    return asking([{"type": "text", "text": "What is it?"}, *parts], **more)


@pytest.mark.parametrize(("name", "expected"), FILES.items())
def test_a_file_is_known_by_its_header(name: str, expected: str) -> None:
    """Type, size, length and pages; its bytes by their number and their hash."""
    data = read(name)
    sha256 = hashlib.sha256(data).hexdigest()[:12]
    assert str(inspect(data)) == f"{expected}, {len(data)} bytes, sha256 {sha256}"


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(list(FILES)),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=6),
    reach=st.sampled_from([40, 200, 10**9]),
)
def test_damaged_bytes_are_inspected_or_unreadable(
    name: str, cut: float, changes: list[tuple[float, bytes]], reach: int
) -> None:
    """Cut anywhere, overwritten anywhere: nothing but `Unreadable` is raised, and what is found makes sense."""
    data = bytearray(read(name)[: round(cut * len(read(name))) + 20])
    for where, what in changes:
        at = round(where * min(reach, len(data)))
        data[at : at + len(what)] = what
    try:
        found = inspect(bytes(data))
    except Unreadable:
        return
    assert found.size == len(data)
    assert found.tokens >= 1
    assert found.seconds >= 0


@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\xff\xfb", b"ID3", b"OggS", b"fLaC", b"RIFF0000WEBPVP8 "]),
)
def test_any_bytes_are_inspected_or_unreadable(data: bytes, head: bytes) -> None:
    """Also behind the beginning of something known."""
    with contextlib.suppress(Unreadable):
        assert inspect(head + data).size == len(head + data)


@pytest.mark.parametrize("name", [*CHECKED, *CHECKED_TOO])
def test_a_file_that_breaks_off_is_unreadable(name: str) -> None:
    """Formats that know their own end notice when half of it is missing."""
    with pytest.raises(Unreadable):
        inspect(read(name)[: len(read(name)) // 2])


def test_a_changed_byte_of_a_png_is_noticed() -> None:
    """Its checksums are checked."""
    data = bytearray(read("charts/cheese.png"))
    data[len(data) // 2] ^= 1
    with pytest.raises(Unreadable):
        inspect(bytes(data))


def test_headers_of_rarer_kinds_are_read() -> None:
    """WebP's three codings, a WAV of unknown length, a JPEG with fill bytes, a PDF with compressed objects."""
    lossless = b"VP8L" + struct.pack("<IBI", 5, 0x2F, 99 | 49 << 14)
    extended = b"VP8X" + struct.pack("<II", 10, 0) + (99).to_bytes(3, "little") + (49).to_bytes(3, "little")
    for coding in (lossless, extended):
        data = b"RIFF" + struct.pack("<I", len(coding) + 4) + b"WEBP" + coding
        assert (inspect(data).width, inspect(data).height) == (100, 50)
    wav = bytearray(read("audio/a4_1s.wav"))
    wav[40:44] = b"\xff\xff\xff\xff"
    assert inspect(bytes(wav)).seconds == 1
    jpeg = read("shapes/three.jpg")
    assert inspect(jpeg[:2] + b"\xff\xff" + jpeg[2:]).width == 240
    objects = zlib.compress(b"<</Type/Pages/Count 2>> <</Type /Page>> <</Type/Page/Parent 1 0 R>>")
    pdf = b"%PDF-1.7\n1 0 obj<</Type/ObjStm/Length 9>>stream\n" + objects + b"\nendstream endobj\n%%EOF\n"
    assert inspect(pdf).pages == 2


@pytest.mark.parametrize(
    ("found", "tokens"),
    [
        (Inspection("image/png", width=384, height=384), 258),
        (Inspection("image/png", width=385, height=10), 258),
        (Inspection("image/png", width=1536, height=769), 4 * 258),
        (Inspection("audio/wav", seconds=2.5), 80),
        (Inspection("application/pdf", pages=3), 774),
        (Inspection("video/mp4", width=160, height=120, seconds=2.0), 516),
    ],
)
def test_media_count_as_tokens(found: Inspection, tokens: int) -> None:
    """258 per tile, page or second of video, 32 per second of audio."""
    assert found.tokens == tokens


async def test_the_answer_says_what_was_sent_and_counts_it() -> None:
    """Several files in one message, in every form that a part can have; prompt tokens are theirs and the text's."""
    png, wav, pdf = read("charts/cheese.png"), read("audio/a4_1s.wav"), read("docs/manual.pdf")
    parts = [
        image(data_url(png, "image/png")),
        image(data_url(pdf, "application/pdf"), bare=True),
        audio(wav, "wav"),
        {"type": "input_audio", "input_audio": {"data": data_url(wav, "audio/x-wav"), "format": "wav"}},
        image("gs://bucket/folder/a.png"),
        image("https://example.org/b.jpg"),
    ]
    async with emulated(Options()) as vertex:
        answered = await vertex.ask(showing(*parts))
        text = content(answered)
        for data in (png, wav, pdf):
            assert f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:12]}" in text
        assert "gs://bucket/folder/a.png (png, not fetched)" in text
        assert "https://example.org/b.jpg (jpg, not fetched)" in text
        assert answered.json()["usage"]["prompt_tokens"] == 3 + 258 + 3 * 258 + 32 + 32 + 258 + 258


def test_descriptions_in_a_schema_say_what_was_sent() -> None:
    """Fields that are called like one; the others are left to what the prompt says."""
    names = ("what_is_shown", "description", "transcript", "title")
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": list(names)}
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    found = message(showing(image(data_url(read("shapes/flag.heic"), "image/heif")), response_format=response_format))
    values = json.loads(found["content"])
    assert [values[name].startswith("image/heic 96x64, 868 bytes") for name in names] == [True, True, True, False]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (image(data_url(b"no picture at all", "image/png")), "Unable to process input image. Please retry or report"),
        (audio(b"no sound at all", "wav"), "Unable to process input audio"),
        (image(data_url(read("docs/notice.pdf")[:900], "application/pdf")), "Unable to process input document"),
        (image(data_url(b"\xff\xfe", "text/plain")), "Unable to process input document"),
        (image(data_url(read("shapes/three.jpg"), "image/png")), "is image/jpeg, but was declared as image/png"),
        (audio(read("audio/three_beeps.flac"), "mp3"), "is audio/flac, but was declared as audio/mpeg"),
        (audio(read("audio/three_beeps.flac"), "flac"), "Unsupported MIME type: flac"),
        (image(data_url(b"x", "application/octet-stream")), "Unsupported MIME type"),
        (image("data:image/png;base64,@@@@"), "Base64 decoding failed"),
        (image("data:image/png,abc"), "data:MIME;base64,DATA"),
        (image("ftp://example.org/a.png"), "Unsupported file uri"),
        (image("a.png"), "Unsupported file uri"),
        (image("gs://bucket"), "Invalid Cloud Storage uri"),
        (image(""), "needs a url"),
        ({"type": "image_url"}, "needs a url"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "needs data"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "needs a format"),
        ({"type": "video_url", "video_url": {"url": "gs://a/b"}}, "Unsupported content part type: 'video_url'"),
    ],
)
async def test_media_that_cannot_be_read_are_refused(part: Json, expected: str) -> None:
    """400 INVALID_ARGUMENT in a list, with the reason."""
    async with emulated(Options()) as vertex:
        assert expected in refusal(await vertex.ask(showing(part)))


async def test_a_text_file_counts_as_text() -> None:
    """A quarter of its characters; the answer tells its length."""
    async with emulated(Options()) as vertex:
        answered = await vertex.ask(showing(image(data_url("größer als 12".encode(), "text/plain"))))
        assert "text/plain 13 characters, 15 bytes" in content(answered)
        assert answered.json()["usage"]["prompt_tokens"] == 3 + 4


@given(seed=st.binary(max_size=8))
def test_what_is_made_is_real(seed: bytes) -> None:
    """A PNG with as many pixels as it says, a WAV that the standard library reads."""
    made = picture(Dice(seed))
    found = inspect(made)
    pixels = zlib.decompress(made[made.index(b"IDAT") + 4 : -16])
    assert len(pixels) == found.height * (1 + 3 * found.width)
    with wave.open(io.BytesIO(tone(Dice(seed)))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 4000)


async def test_a_picture_comes_where_audio_would() -> None:
    """In `message.audio`, with its type; content is null, or the text when text was asked for too."""
    async with emulated(Options()) as vertex:
        for modalities in (["image"], ["text", "image"], ["audio"]):
            answered = (await vertex.ask(asking("A heron.", modalities=modalities))).json()
            found = answered["choices"][0]["message"]
            mime_type = found["audio"]["extra_content"]["google"]["mime_type"]
            assert mime_type == ("audio/wav" if modalities == ["audio"] else "image/png")
            assert inspect(base64.b64decode(found["audio"]["data"], validate=True)).mime_type == mime_type
            assert (found["content"] is None) == ("text" not in modalities)
            assert answered["usage"]["completion_tokens"] >= (13 if modalities == ["audio"] else 1290)


async def test_a_streamed_picture_comes_in_one_delta() -> None:
    """The same bytes as unstreamed."""
    payload = asking("A heron.", modalities=["image"])
    async with emulated(Options()) as vertex:
        found = list(deltas(chunks((await vertex.ask({**payload, "stream": True})).body)))
        assert [delta["audio"] for delta in found] == [message(payload)["audio"]]


def test_another_prompt_gets_another_picture_and_the_same_the_same() -> None:
    """Pictures are a function of the request and the seed."""

    def data(text: str, seed: int = 0) -> str:
        return str(message(asking(text, modalities=["image"]), seed=seed)["audio"]["data"])

    assert data("A heron.") == data("A heron.")
    assert len({data("A heron."), data("A pigeon."), data("A heron.", seed=1)}) == 3
    assert len({data(f"Picture {number}") for number in range(20)}) == 20
