"""Media columns: what a value may be, what is refused before it is read, and the message parts that come of it."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Reply, Request
from pipeline.faults import InvalidRow
from pipeline.job.attachments import (
    INLINE_LIMIT,
    Attachment,
    MediaKind,
    attachments,
    audio,
    encoded_size,
    image,
    load,
    media,
    sniff,
)
from pipeline.policy import attaching

MEDIA = Path(__file__).parent.parent / "data" / "media"
FILES = sorted(path for path in MEDIA.rglob("*") if path.is_file() and path.suffix != ".md")
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".heic": "image/heic",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".m4a": "audio/mp4",
    ".pdf": "application/pdf",
    ".mp4": "video/mp4",
}
PNG = b"\x89PNG\r\n\x1a\n"
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt "


def named(path: Path) -> str:
    return path.name


def picture(value: str | bytes) -> Attachment:
    return Attachment("image", "photo", value)


def refusal(value: str | bytes, root: Path | None, *, kind: MediaKind = "image", budget: int = INLINE_LIMIT) -> str:
    """Why the value is refused, in words."""
    with pytest.raises(InvalidRow) as caught:
        load(Attachment(kind, "photo", value), root, budget)
    assert "'photo'" in caught.value.message
    return caught.value.message


def url_of(part: dict[str, Any]) -> str:
    assert part["type"] == "image_url"
    url: str = part["image_url"]["url"]
    return url


def sparse(path: Path, size: int) -> None:
    """A PNG of that many bytes, which takes no room on the disk."""
    path.write_bytes(PNG)
    os.truncate(path, size)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_the_type_comes_from_the_bytes_whatever_the_name_says(path: Path, tmp_path: Path) -> None:
    liar = tmp_path / "picture.txt"
    liar.write_bytes(path.read_bytes())
    url = url_of(load(Attachment("media", "photo", liar.name), tmp_path))
    assert url.partition(";")[0] == f"data:{TYPES[path.suffix]}"


def test_the_media_have_every_type_that_is_claimed() -> None:
    assert {path.suffix for path in FILES} == set(TYPES)


@pytest.mark.parametrize(
    ("head", "mime_type"),
    [
        (b"\x00\x00\x00\x18ftypmif1", "image/heif"),
        (b"\x00\x00\x00\x18ftypavif", "image/avif"),
        (b"\x00\x00\x00\x18ftypqt  ", "video/quicktime"),
        (b"\x1aE\xdf\xa3", "video/webm"),
        (b"ID3\x04", "audio/mpeg"),
        (b"\xff\xfb\x90", "audio/mpeg"),
        (b"GIF87a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00AVI ", None),
        (b"\xff", None),
        (b"", None),
        (b"plain text, and nothing else", None),
    ],
)
def test_containers_are_told_apart_by_their_brands_and_text_has_no_type(head: bytes, mime_type: str | None) -> None:
    assert sniff(head) == mime_type


@given(st.binary(max_size=40))
def test_any_bytes_have_a_type_or_none_and_never_an_error(content: bytes) -> None:
    assert sniff(content) is None or "/" in str(sniff(content))


@given(st.binary(max_size=300))
def test_the_bytes_of_an_image_survive_the_way(tail: bytes) -> None:
    head, _, data = url_of(load(picture(PNG + tail), None)).partition(";base64,")
    assert (head, base64.b64decode(data, validate=True)) == ("data:image/png", PNG + tail)


@given(st.binary(max_size=300))
def test_the_bytes_of_a_recording_survive_the_way(tail: bytes) -> None:
    part = load(Attachment("audio", "sound", WAV + tail), None)
    assert part["type"] == "input_audio"
    assert base64.b64decode(part["input_audio"]["data"], validate=True) == WAV + tail


@given(st.binary(max_size=100))
def test_the_size_in_base64_is_known_before_encoding(content: bytes) -> None:
    assert encoded_size(len(content)) == len(base64.b64encode(content))


@pytest.mark.parametrize(
    ("name", "written"),
    [("wav", "wav"), ("mp3", "mp3"), ("flac", "audio/flac"), ("ogg", "audio/ogg"), ("m4a", "audio/mp4")],
)
def test_recordings_are_named_as_the_endpoint_names_them(name: str, written: str) -> None:
    """`wav` and `mp3` by OpenAI's names, everything else by MIME type, and the data without a `data:` URL around it."""
    part = load(Attachment("audio", "sound", f"audio/three_beeps.{name}"), MEDIA)
    content = (MEDIA / "audio" / f"three_beeps.{name}").read_bytes()
    assert part == {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(content).decode(), "format": written},
    }


@pytest.mark.parametrize("uri", ["gs://bucket/a.png", "https://example.org/a.png?x=1", "data:image/png;base64,AAAA"])
@pytest.mark.parametrize("kind", ["image", "media"])
def test_s3_uris_are_handed_through_as_they_are(uri: str, kind: MediaKind) -> None:
    """No media root is needed: nothing of them is read here."""
    assert load(Attachment(kind, "photo", uri), None) == {"type": "image_url", "image_url": {"url": uri}}


@pytest.mark.parametrize(
    ("uri", "data", "name"),
    [
        ("gs://bucket/a.mp3", "gs://bucket/a.mp3", "mp3"),
        ("https://example.org/a.FLAC?x=1.wav", "https://example.org/a.FLAC?x=1.wav", "audio/flac"),
        ("gs://bucket/recording", "gs://bucket/recording", "wav"),
        ("data:audio/mpeg;base64,AAAA", "AAAA", "mp3"),
        ("data:audio/ogg;base64,AAAA", "AAAA", "audio/ogg"),
    ],
)
def test_uris_of_recordings_say_their_format(uri: str, data: str, name: str) -> None:
    part = load(Attachment("audio", "sound", uri), None)
    assert part["input_audio"]["data"] == data
    assert part["input_audio"]["format"] == name or (name == "wav" and part["input_audio"]["format"] == "audio/wav")


@pytest.mark.parametrize("uri", ["http://example.org/a.png", "ftp://example.org/a.png", "file:///etc/passwd"])
def test_s3_other_urls_are_refused_and_never_taken_for_paths(uri: str, tmp_path: Path) -> None:
    assert "gs:// and https://" in refusal(uri, tmp_path)


def test_a_data_url_of_a_recording_that_is_not_base64_is_refused() -> None:
    """Its bytes could not be taken over; an empty recording would be sent in their place."""
    with pytest.raises(InvalidRow, match="base64"):
        load(Attachment("audio", "sound", "data:audio/wav,RIFF"), None)


def test_a_list_gives_an_attachment_for_each_of_its_values_in_order() -> None:
    found = attachments(image("photos"), {"photos": ["a.png", PNG, "gs://b/c.png"]})
    assert found == [Attachment("image", "photos", value) for value in ("a.png", PNG, "gs://b/c.png")]


def test_each_function_names_its_kind() -> None:
    assert [part.kind for part in (image("a"), audio("b"), media("c"))] == ["image", "audio", "media"]


@pytest.mark.parametrize("value", [None, "", b"", [], ["a.png", None], ["a.png", ""], 7, {"path": "a"}, [["a.png"]]])
def test_a_column_without_media_fails_the_row_by_its_name(value: object) -> None:
    with pytest.raises(InvalidRow, match="column 'photo' holds no audio"):
        attachments(audio("photo"), {"photo": value})


def test_a_column_that_the_row_lacks_fails_the_row_by_its_name() -> None:
    with pytest.raises(InvalidRow, match="column 'photo' holds no image"):
        attachments(image("photo"), {"other": "a.png"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "'none.png' cannot be read: No such file" in refusal("none.png", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.png").chmod(0)
    assert "'a.png' cannot be read: Permission denied" in refusal("a.png", tmp_path)


def test_a_link_that_leads_to_itself_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    assert "'a.png' cannot be read: Too many levels" in refusal("a.png", tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert "the image is empty" in refusal("a.png", tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"), [("image", "audio/a4_1s.wav"), ("image", "docs/notice.pdf"), ("audio", "charts/cheese.png")]
)
def test_media_of_another_kind_are_refused(kind: MediaKind, name: str) -> None:
    said = refusal(name, MEDIA, kind=kind)
    assert f"{name!r} is {TYPES[Path(name).suffix]}, which is no {kind}" in said


def test_bytes_of_no_known_type_are_refused_without_being_shown() -> None:
    said = refusal(b"confidential", None, kind="media")
    assert "the value is of no known type" in said
    assert "confidential" not in said


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """The file is 1 TB and holds nothing: reading it would end the test."""
    sparse(tmp_path / "a.png", 10**12)
    assert "put it on gs://" in refusal("a.png", tmp_path)


def test_the_limit_is_on_the_encoded_size_to_the_byte(tmp_path: Path) -> None:
    most = INLINE_LIMIT // 4 * 3
    sparse(tmp_path / "most.png", most)
    sparse(tmp_path / "more.png", most + 1)
    assert url_of(load(picture("most.png"), tmp_path)).startswith("data:image/png")
    assert f"takes {INLINE_LIMIT + 4} bytes" in refusal("more.png", tmp_path)


@pytest.mark.parametrize("value", [PNG + bytes(100), "data:image/png;base64," + "A" * 100])
def test_bytes_and_data_urls_count_too(value: str | bytes) -> None:
    assert "can be sent inline" in refusal(value, None, budget=100)


@pytest.mark.parametrize("name", ["../secret.png", "inner/../../secret.png", "link.png", "folder/secret.png", "."])
def test_s2_there_is_no_way_out_of_the_media_root(name: str, tmp_path: Path) -> None:
    """Neither by dots nor by a link to a file or through a link to a folder; the root itself is no file."""
    (tmp_path / "secret.png").write_bytes(PNG)
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    said = refusal(name, root)
    assert "outside the job's media root" in said or (name == "." and "not a regular file" in said)


def test_s2_an_absolute_path_outside_is_refused_and_one_inside_is_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for path in (tmp_path / "a.png", root / "a.png"):
        path.write_bytes(PNG)
    assert "outside" in refusal(str(tmp_path / "a.png"), root)
    assert url_of(load(picture(str(root / "a.png")), root)).startswith("data:image/png")


def test_s2_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "a.png").write_bytes(PNG)
    assert "outside" in refusal("../root2/a.png", tmp_path / "root")


def test_the_whole_file_system_can_be_the_root(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert url_of(load(picture(str(tmp_path / "a.png")), Path("/"))).startswith("data:image/png")


def test_a_link_within_the_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").symlink_to("a.png")
    assert url_of(load(picture("b.png"), tmp_path)).startswith("data:image/png")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_s2_what_is_no_regular_file_is_refused_and_holds_nobody_up(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / "a.png")
    assert "'a.png'" in refusal("a.png", tmp_path)


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "a" * 5000])
def test_s2_a_name_that_no_file_can_have_fails_the_row_only(name: str, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(name, tmp_path)


def test_a_name_without_a_media_root_tells_what_is_missing() -> None:
    assert "`media_root`" in refusal("a.png", None)


def asked(*content: object) -> Request:
    return Request(0, {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": list(content)}]})


class RecordingEndpoint:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def ask(self, request: Request) -> Reply:
        self.requests.append(request)
        return Reply(b"{}")


@pytest.mark.anyio
async def test_attachments_become_parts_in_their_places_and_the_request_stays_as_it_was() -> None:
    endpoint = RecordingEndpoint()
    text = {"type": "text", "text": "what?"}
    request = asked(picture("charts/cheese.png"), text, Attachment("audio", "sound", WAV))
    await attaching(endpoint.ask, MEDIA)(request)
    system, user = endpoint.requests[0].payload["messages"]
    assert system == {"role": "system", "content": "S"}
    assert [part["type"] for part in user["content"]] == ["image_url", "text", "input_audio"]
    assert user["content"][1] == text
    assert request.payload["messages"][1]["content"][0] == picture("charts/cheese.png")


@pytest.mark.anyio
async def test_a_request_of_text_only_is_passed_on_untouched() -> None:
    endpoint = RecordingEndpoint()
    request = Request(0, {"messages": [{"role": "user", "content": "hello"}]})
    await attaching(endpoint.ask, None)(request)
    assert endpoint.requests[0] is request


@pytest.mark.anyio
async def test_a_file_that_cannot_be_read_fails_the_row_before_any_call(tmp_path: Path) -> None:
    endpoint = RecordingEndpoint()
    with pytest.raises(InvalidRow, match="cannot be read"):
        await attaching(endpoint.ask, tmp_path)(asked(picture(PNG), picture("none.png")))
    assert endpoint.requests == []


@pytest.mark.anyio
async def test_files_are_read_in_a_thread(tmp_path: Path) -> None:
    """The message's mapping tells which thread looked for its content first."""
    threads: list[threading.Thread] = []

    class Telling(dict[str, Any]):
        def __iter__(self) -> Any:  # asked for when the message is made again, with its parts
            threads.append(threading.current_thread())
            return super().__iter__()

        def keys(self) -> Any:
            threads.append(threading.current_thread())
            return super().keys()

    (tmp_path / "a.png").write_bytes(PNG)
    message = Telling(role="user", content=[picture("a.png")])
    await attaching(RecordingEndpoint().ask, tmp_path)(Request(0, {"messages": [message]}))
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.anyio
async def test_the_limit_is_on_all_parts_of_a_request_together(tmp_path: Path) -> None:
    """Each of three files is under the limit, and so are two of them, in messages of their own."""
    for name in "abc":
        sparse(tmp_path / f"{name}.png", 6_000_000)
    endpoint = RecordingEndpoint()
    ask = attaching(endpoint.ask, tmp_path)
    await ask(asked(picture("a.png"), picture("b.png")))
    messages = [{"role": "user", "content": [picture(f"{name}.png")]} for name in "abc"]
    with pytest.raises(InvalidRow, match="can be sent inline"):
        await ask(Request(1, {"messages": messages}))
    assert len(endpoint.requests) == 1
