# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow==12.0.0", "pillow-heif==1.1.1", "reportlab==4.4.4", "pyarrow==26.0.1"]
# ///
"""Writes media/ with its README, and the inputs that point into it, beside this script.

It needs the program ffmpeg (5.1 was used) for everything that sounds or moves, except WAV. Every file shows or
says something known, which is told in media/README.md and in the column `answer` of the inputs. Running it again
with the same versions writes the same bytes.
"""

import array
import io
import json
import math
import shutil
import subprocess
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pagesizes import A5
from reportlab.pdfgen.canvas import Canvas

HERE = Path(__file__).parent
MEDIA = HERE / "media"
INK, PAPER, RED, GREEN, BLUE, YELLOW = "#222222", "#ffffff", "#c8102e", "#1a7f37", "#1f5fbf", "#f2c200"


@dataclass(frozen=True)
class Medium:
    """One file of media/, and what a person finds in it."""

    path: str
    extent: str
    content: str


@dataclass(frozen=True)
class Chart:
    """A bar chart: its title and the labelled bars."""

    name: str
    title: str
    bars: Sequence[tuple[str, int]]
    colour: str


CHARTS = (
    Chart("rainfall", "Rain in Wexcombe, mm", [("Jan", 82), ("Feb", 61), ("Mar", 44), ("Apr", 57), ("May", 39)], BLUE),
    Chart("tickets", "Tickets by channel", [("email", 25), ("web", 15), ("chat", 14), ("phone", 9)], GREEN),
    Chart("cheese", "Cheese sold, kg", [("2022", 120), ("2023", 180), ("2024", 150), ("2025", 240)], YELLOW),
)
RECEIPTS = {
    "teapot": """\
THE CROOKED TEAPOT
Receipt no. 1187
12 May 2026

2 Cheese scone     7.20
1 Pot of Assam     4.20
1 Lemon cake       4.75

TOTAL GBP         16.15
PAID BY CARD""",
    "velo": """\
VELOWERKSTATT
SPEICHENGLUECK
Beleg 2026/0442
03.07.2026

1 Veloschlauch     9.90
1 Kette 8-fach    32.50
Rabatt            -2.40

Total CHF         40.00
Zahlbar innert 30 Tagen""",
}
DOCUMENTS = {
    "notice": [
        """\
Notice

The lift is out of order until Friday.
Please use the stairs and mind the second step."""
    ],
    "minutes": [
        """\
Minutes of the Heron Committee, page 1 of 2

Present: five members and a pigeon.
Item 1: the pond. It holds water.""",
        """\
Minutes of the Heron Committee, page 2 of 2

Item 2: the budget is 1,240.50 euros.
Next meeting: 9 June 2026, 18:00, Guildhall.""",
    ],
    "manual": [
        """\
Kettle KD-12, manual

Chapter 1: Unpacking.
The box holds a kettle, a lid and a cable of 0.8 m.""",
        """\
Kettle KD-12, manual

Chapter 2: Boiling.
Fill in at most 1.7 litres. Boiling takes 4 minutes.""",
        """\
Kettle KD-12, manual

Chapter 3: Cleaning.
Descale once a month with vinegar. Warranty: 36 months.""",
    ],
}


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, so that the pictures do not depend on the machine."""
    return ImageFont.load_default(size)


def draw_chart(chart: Chart) -> Image.Image:
    """480 x 320; the value stands above every bar, the label below it."""
    picture = Image.new("RGB", (480, 320), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((240, 24), chart.title, INK, font(22), anchor="mm")
    pen.line((40, 280, 460, 280), INK, 2)
    step, top = 420 / len(chart.bars), max(value for _, value in chart.bars)
    for place, (label, value) in enumerate(chart.bars):
        middle, height = 40 + step * (place + 0.5), 200 * value / top
        pen.rectangle((middle - step * 0.3, 280 - height, middle + step * 0.3, 279), chart.colour)
        pen.text((middle, 268 - height), str(value), INK, font(16), anchor="mm")
        pen.text((middle, 298), label, INK, font(16), anchor="mm")
    return picture


def draw_receipt(lines: Sequence[str]) -> Image.Image:
    """260 wide; text to the left, amounts to the right."""
    picture = Image.new("RGB", (260, 24 * len(lines) + 32), "#fbfaf5")
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        text, _, amount = line.rpartition("  ")
        height = 16 + 24 * number
        pen.text((16, height), text.strip() or line.strip(), INK, font(15))
        if text:
            pen.text((244, height), amount.strip(), INK, font(15), anchor="ra")
    return picture


def draw_shapes() -> Image.Image:
    """240 x 120: a red circle, a blue square and a green triangle, from left to right."""
    picture = Image.new("RGB", (240, 120), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((15, 30, 75, 90), RED)
    pen.rectangle((90, 30, 150, 90), BLUE)
    pen.polygon([(195, 28), (165, 90), (225, 90)], GREEN)
    return picture


def draw_dots(count: int, colour: str, side: int = 96) -> Image.Image:
    """A square with `count` dots, three to a row."""
    picture = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(picture)
    for dot in range(count):
        x, y = 16 + 32 * (dot % 3), 16 + 32 * (dot // 3)
        pen.ellipse((x - 10, y - 10, x + 10, y + 10), colour)
    return picture


def draw_digit(digit: int, colour: str) -> Image.Image:
    """A big white digit on a colour, 160 x 120."""
    picture = Image.new("RGB", (160, 120), colour)
    ImageDraw.Draw(picture).text((80, 60), str(digit), PAPER, font(80), anchor="mm")
    return picture


def draw_flag() -> Image.Image:
    """96 x 64: three stripes, blue over yellow over blue."""
    picture = Image.new("RGB", (96, 64), BLUE)
    ImageDraw.Draw(picture).rectangle((0, 22, 95, 42), YELLOW)
    return picture


def write_pictures() -> Iterator[Medium]:
    """charts/, receipts/ and shapes/."""
    for chart in CHARTS:
        draw_chart(chart).save(target(f"charts/{chart.name}.png"), optimize=True)
        bars = ", ".join(f"{label} {value}" for label, value in chart.bars)
        yield Medium(f"charts/{chart.name}.png", "480 x 320", f"bar chart “{chart.title}”: {bars}")
    for name, receipt in RECEIPTS.items():
        lines = receipt.splitlines()
        picture = draw_receipt(lines)
        picture.save(target(f"receipts/{name}.png"), optimize=True)
        said = " / ".join(" ".join(line.split()) for line in lines if line)
        yield Medium(f"receipts/{name}.png", f"{picture.width} x {picture.height}", f"receipt: {said}")
    draw_shapes().save(target("shapes/three.jpg"), quality=90)
    yield Medium("shapes/three.jpg", "240 x 120", "red circle, blue square, green triangle, from left to right")
    draw_dots(5, RED).save(target("shapes/five_dots.webp"), lossless=True)
    yield Medium("shapes/five_dots.webp", "96 x 96", "five red dots on white")
    draw_dots(7, GREEN).save(target("shapes/seven_dots.gif"))
    yield Medium("shapes/seven_dots.gif", "96 x 96", "seven green dots on white, one frame")
    pillow_heif.from_pillow(draw_flag()).save(target("shapes/flag.heic"), quality=80)
    yield Medium("shapes/flag.heic", "96 x 64", "three stripes: blue, yellow, blue")


def tone(parts: Sequence[tuple[float, float]], rate: int) -> bytes:
    """16-bit mono samples of tones, each (hertz, seconds); 0 hertz is silence."""
    samples = array.array("h")
    for hertz, seconds in parts:
        count = round(seconds * rate)
        edge = rate // 100
        loud = (min(1.0, at / edge, (count - at) / edge) for at in range(count))
        samples.extend(
            round(12_000 * level * math.sin(2 * math.pi * hertz * at / rate)) for at, level in enumerate(loud)
        )
    return samples.tobytes()


BEEPS = [(660.0, 0.5), (0.0, 0.5), (660.0, 0.5), (0.0, 0.5), (660.0, 0.5)]
TONES = (
    ("a4_1s", [(440.0, 1.0)], 16_000, "one tone of 440 Hz"),
    ("a5_2s5", [(880.0, 2.5)], 8_000, "one tone of 880 Hz"),
    ("three_beeps", BEEPS, 16_000, "three beeps of 660 Hz, half a second each, half a second of silence between them"),
)
ENCODINGS = {
    "flac": ["-c:a", "flac"],
    "mp3": ["-c:a", "libmp3lame", "-b:a", "32k"],
    "ogg": ["-c:a", "libvorbis", "-q:a", "1"],
    "m4a": ["-c:a", "aac", "-b:a", "32k"],
}


def write_recordings() -> Iterator[Medium]:
    """audio/: WAV of each, and the beeps in every encoding."""
    for name, parts, rate, content in TONES:
        with wave.open(str(target(f"audio/{name}.wav")), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(rate)
            sound.writeframes(tone(parts, rate))
        seconds = sum(length for _, length in parts)
        yield Medium(f"audio/{name}.wav", f"{seconds} s, {rate} Hz mono", content)
    for ending, options in ENCODINGS.items():
        encode(["-i", str(MEDIA / "audio/three_beeps.wav"), *options], f"audio/three_beeps.{ending}")
        yield Medium(f"audio/three_beeps.{ending}", "2.5 s, 16000 Hz mono", f"{TONES[2][3]} (encoders may pad the end)")


def write_video() -> Iterator[Medium]:
    """video/: two digits, a second each."""
    frames = [draw_digit(4, BLUE)] * 10 + [draw_digit(7, RED)] * 10
    raw = b"".join(frame.tobytes() for frame in frames)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "160x120", "-r", "10", "-i", "-"]
    encode([*source, "-c:v", "libx264", "-threads", "1", "-pix_fmt", "yuv420p"], "video/four_seven.mp4", raw)
    yield Medium("video/four_seven.mp4", "160 x 120, 2.0 s, 10 frames/s, silent", "a white 4 on blue, then a 7 on red")


def encode(options: Sequence[str], path: str, data: bytes = b"") -> None:
    """Runs ffmpeg without anything in the output that changes from run to run."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise SystemExit("this needs ffmpeg: apt-get install ffmpeg")
    plain = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-flags:v", "+bitexact"]
    command = [program, "-y", "-loglevel", "error", *options, *plain, str(target(path))]
    subprocess.run(command, input=data, check=True)  # noqa: S603  our own arguments


def write_documents() -> Iterator[Medium]:
    """docs/: PDFs of one, two and three pages."""
    for name, texts in DOCUMENTS.items():
        pages = [text.splitlines() for text in texts]
        canvas = Canvas(str(target(f"docs/{name}.pdf")), pagesize=A5, invariant=1)
        canvas.setTitle(pages[0][0])
        for page in pages:
            for number, line in enumerate(page):
                canvas.setFont("Helvetica-Bold" if number == 0 else "Helvetica", 14 if number == 0 else 11)
                canvas.drawString(40, 540 - 20 * number, line)
            canvas.showPage()
        canvas.save()
        said = " / ".join(line for page in pages for line in page[2:])
        yield Medium(f"docs/{name}.pdf", f"{len(pages)} page{'s'[: len(pages) - 1]}, A5", f"{pages[0][0]}: {said}")


def target(path: str) -> Path:
    """Where a file of media/ goes; its folder is there."""
    (MEDIA / path).parent.mkdir(parents=True, exist_ok=True)
    return MEDIA / path


IMAGES = (
    (["charts/rainfall.png"], "How many millimetres of rain fell in March?", "44"),
    (["charts/rainfall.png"], "Which month was the wettest?", "Jan"),
    (["charts/tickets.png"], "How many tickets came by chat?", "14"),
    (["charts/cheese.png"], "In which year was the most cheese sold?", "2025"),
    (
        ["charts/rainfall.png", "charts/cheese.png"],
        "Which of the two charts has more bars? Answer first or second.",
        "first",
    ),
    (["shapes/three.jpg"], "What colour is the square?", "blue"),
    (["shapes/five_dots.webp"], "How many dots are there?", "5"),
    (["shapes/seven_dots.gif"], "How many dots are there?", "7"),
    (["shapes/five_dots.webp", "shapes/seven_dots.gif"], "How many dots are there in both pictures together?", "12"),
    (["shapes/flag.heic"], "What colour is the middle stripe?", "yellow"),
    (["receipts/teapot.png"], "What is the total?", "16.15"),
    (["receipts/velo.png"], "Welcher Betrag ist zu zahlen?", "40.00"),
)
SPOKEN = (
    ("audio/a4_1s.wav", "1"),
    ("audio/a5_2s5.wav", "1"),
    *((f"audio/three_beeps.{ending}", "3") for ending in ("wav", *ENCODINGS)),
)
ASKED = (
    ("docs/notice.pdf", "Until when is the lift out of order?", "Friday"),
    ("docs/minutes.pdf", "How large is the budget, in euros?", "1240.50"),
    ("docs/minutes.pdf", "On which date is the next meeting?", "2026-06-09"),
    ("docs/manual.pdf", "For how many months is the warranty?", "36"),
)


def write_inputs() -> None:
    """images.jsonl, recordings.jsonl, documents.jsonl."""
    images = [
        {"id": f"img-{number:02}", "paths": paths, "question": question, "answer": answer}
        for number, (paths, question, answer) in enumerate(IMAGES, 1)
    ]
    recordings = [
        {"id": f"rec-{number:02}", "path": path, "question": "How many separate tones do you hear?", "answer": answer}
        for number, (path, answer) in enumerate(SPOKEN, 1)
    ]
    documents = [
        {"id": f"pdf-{number:02}", "path": path, "question": question, "answer": answer}
        for number, (path, question, answer) in enumerate(ASKED, 1)
    ]
    write_lines("images.jsonl", images)
    write_lines("recordings.jsonl", recordings)
    write_lines("documents.jsonl", documents)


def write_lines(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="utf-8", newline="\n")


def write_image_bytes() -> None:
    """image_bytes.parquet: six small pictures inside the table, in two formats."""
    colours = (("red", RED), ("green", GREEN), ("blue", BLUE))
    cells = []
    for count, (colour, paint) in zip((1, 2, 3, 4, 6, 8), colours * 2, strict=True):
        kind = "PNG" if count % 2 else "JPEG"
        sink = io.BytesIO()
        draw_dots(count, paint).save(sink, kind)
        cells.append((f"bytes-{count}", sink.getvalue(), f"{count} {colour} dot{'s'[: count - 1]}, {kind}"))
    names, images, captions = zip(*cells, strict=True)
    columns = [pa.array(names, pa.string()), pa.array(images, pa.binary()), pa.array(captions, pa.string())]
    table = pa.table(columns, names=["image_id", "image", "caption"])
    pq.write_table(table, HERE / "image_bytes.parquet", compression="zstd")


def write_readme(media: Sequence[Medium]) -> None:
    """media/README.md: every file, and what is in it."""
    rows = [f"| `{one.path}` | {one.extent} | {one.content} |" for one in media]
    head = "Drawn, computed and typeset by `../make_media.py`; synthetic throughout, CC0. Written by the same script."
    table = ["| file | size, length or pages | what is in it |", "|---|---|---|", *rows]
    (MEDIA / "README.md").write_text("\n".join(["# Media", "", head, "", *table, ""]), encoding="utf-8", newline="\n")


def main() -> None:
    """Writes the files."""
    media = [*write_pictures(), *write_recordings(), *write_documents(), *write_video()]
    write_readme(media)
    write_inputs()
    write_image_bytes()


if __name__ == "__main__":
    main()
