"""Bad input and faults, with real files and a real server: each is a clear error or a counted skip, never a crash."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import tiny_ir
from hawkeye.cli import run
from hawkeye.data import decode_image, read_image, readable
from hawkeye.errors import DataError
from hawkeye.live import LiveSession
from hawkeye.outputs import JsonLines, draw
from hawkeye.predict import predict
from hawkeye.runtime.source import VideoCapture, find_sources
from hawkeye.runtime.stream import Stream
from live_fakes import (
    NAMES,
    FakeCapture,
    FakeNetwork,
    capture_threads,
    engine,
    jpeg,
    mjpeg_camera,
    picture,
    source,
    until,
    write_video,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_ir.stock_folder(tmp_path / "model", stock_head=True)


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "cannot read"),
        ("noise.jpg", bytes(range(256)) * 20, "cannot read"),
        ("text.bmp", b"BM this is no bitmap", "cannot read"),
        ("cut.png", jpeg(picture(1))[:30], "cannot read"),
        ("bomb.png", png_header(30_000, 30_000), "too large"),
        ("bomb2.png", png_header(100_000, 501), "too large"),
    ],
)
def test_a_picture_that_cannot_be_used(model, tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_image(path)
    assert run(["predict", str(path), "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert name in text
    assert not (tmp_path / "out").exists()


def whole_jpegs(folder: Path) -> dict[str, bytes]:
    """Whole JPEGs, some of which do not end with their end marker or hold another one before."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8))
    plain = jpeg(np.asarray(noise))
    made = {"plain": plain, "padded": plain + bytes(100), "with a video behind it": plain + b"\0\0\0 ftypmp42" * 50}
    noise.save(folder / "progressive.jpg", progressive=True)
    exif = b"Exif\0\0" + b"II*\0\x08\0\0\0" + bytes(6) + jpeg(picture(100, (8, 8)))
    noise.save(folder / "thumbnail.jpg", exif=exif)
    noise.save(folder / "two.jpg", format="MPO", save_all=True, append_images=[noise])
    return {**made, **{path.stem: path.read_bytes() for path in folder.glob("*.jpg")}}


def test_a_jpeg_that_was_cut_off_is_told_whatever_is_in_it_or_behind_it(tmp_path):
    """Decoders fill in grey for what is missing, in which things are found or not."""
    for name, content in whole_jpegs(tmp_path).items():
        assert decode_image(content, name).shape == (64, 96, 3), name
        end = content.index(b"\xff\xd9", 1500)  # behind a thumbnail's
        for length in (700, end // 3, end // 2, end - 20):
            (tmp_path / "cut.jpeg").write_bytes(content[:length])
            with pytest.raises(DataError, match="cut off|cannot read"):
                decode_image(content[:length], name)
            with pytest.raises(DataError, match="cut off|cannot read"):
                read_image(tmp_path / "cut.jpeg")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_other_pictures_that_were_cut_off_are_errors(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = cv2.imencode(suffix, noise)[1].tobytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        read_image(tmp_path / f"cut{suffix}")


def test_cut_off_pictures_among_many_are_skipped_and_counted(model, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(19):
        cv2.imwrite(str(folder / f"{number:02}.jpg"), picture(200, (8, 8)))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    (folder / "cut.jpg").write_bytes(jpeg(noise)[:700])
    arguments = ["--model", str(model), "--out", str(tmp_path / "out")]
    assert run(["predict", str(folder), *arguments]) == 0
    text = capsys.readouterr().out
    assert "in 19 pictures" in text and "1 pictures could not be read" in text
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    (row,) = (row for row in rows if "error" in row)
    assert row["image"] == str(folder / "cut.jpg") and "is cut off; got: a JPEG without its end" in row["error"]
    assert run(["count", str(folder), *arguments]) == 0
    assert "pictures: ended; 1 pictures could not be read" in capsys.readouterr().out
    assert readable(sorted(folder.iterdir()))[1] == [folder / "cut.jpg"]  # so training leaves it out too
    assert run(["predict", str(folder / "cut.jpg"), *arguments]) == 2
    assert "cut.jpg is cut off" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_picture_becomes_three_channels_of_a_byte(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(path)
    else:
        Image.new("RGB", (30, 20), (156, 156, 156)).convert(mode).save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)
    if mode != "1":
        assert abs(int(image.mean()) - 156) <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_pictures_are_turned_upright(tmp_path, orientation):
    """Against Pillow's own turning."""
    from PIL import ImageOps

    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "x.jpg") as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))[..., ::-1]
    image = read_image(tmp_path / "x.jpg")
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() < 20


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_the_smallest_pictures(model, tmp_path, size):
    cv2.imwrite(str(tmp_path / "x.png"), picture(255, size))
    done = predict(model, tmp_path / "x.png", out=tmp_path / "out", threads=1)
    row = json.loads(done.results.read_text())
    assert (row["height"], row["width"]) == size
    assert cv2.imread(str(done.pictures[0])).shape == (*size, 3)


def test_some_bad_pictures_of_many_are_skipped_and_counted(model, tmp_path, capsys):
    for number in range(19):
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), picture(200, (8, 8)))
    (tmp_path / "bad.png").write_bytes(b"broken")
    assert run(["predict", str(tmp_path), "--model", str(model), "--out", str(tmp_path / "out")]) == 0
    assert "1 pictures could not be read" in capsys.readouterr().out
    assert (tmp_path / "out/predictions.jsonl").read_text().count('"detections"') == 19


def test_frames_outside_every_shape_are_refused_by_drawing_too():
    found = FakeNetwork(lambda _: (-1e6, -1e6, 1e6, 1e6))(picture(0))
    assert draw(picture(0), found, NAMES).shape == (40, 60, 3)


# -- videos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "is empty"),
        ("noise.mp4", bytes(range(256)) * 100, "cannot open"),
        ("list.ts", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "play list"),
        ("list.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n", "play list"),
        ("spaced.mp4", b"\xef\xbb\xbf\n #EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "cannot open"),
    ],
)
def test_a_video_that_cannot_be_used(model, tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert run(["count", str(path), "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert name in text
    assert not (tmp_path / "out").exists()


def test_a_video_that_was_cut_off_counts_what_is_there_and_says_so(tmp_path):
    path = write_video(tmp_path / "v.avi", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    session = LiveSession(engine(), NAMES)
    session.add(Stream(find_sources([path])[0]))
    session.run()
    (status,) = session.status()
    assert 0 < status.done < 36
    assert (status.state, "ended after" in status.error) == ("ended", True)


def damaged(path: Path, frames: int = 60) -> Path:
    """A video of which OpenCV gives 7 frames, then nothing for 3, then all the others."""
    write_video(path, frames)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 400
    content[start : start + 150] = b"\xff" * 150
    path.write_bytes(content)
    return path


def test_a_video_with_damaged_frames_goes_on_behind_them(tmp_path):
    session = LiveSession(engine(), NAMES, outputs=[JsonLines(tmp_path / "o.jsonl")])
    session.add(Stream(find_sources([damaged(tmp_path / "v.mp4")])[0]))
    session.run()
    (status,) = session.status()
    assert (status.state, status.done, status.damaged, status.captured, status.total) == ("ended", 57, 3, 57, 60)
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == [*range(7), *range(10, 60)]
    assert all(row["time_s"] == pytest.approx(row["frame"] / 10) for row in rows)


def test_damaged_and_missing_frames_are_told_and_more_than_a_tenth_is_exit_1(model, tmp_path, capsys):
    arguments = ["--model", str(model), "--threads", "1", "--out", str(tmp_path / "out")]
    assert run(["count", str(damaged(tmp_path / "v.mp4")), *arguments]) == 0
    assert "v: ended; 3 frames damaged" in capsys.readouterr().out
    assert run(["count", str(damaged(tmp_path / "v.mp4", 25)), *arguments]) == 1
    assert "v: ended; 3 frames damaged" in capsys.readouterr().out
    path = write_video(tmp_path / "cut.avi", 40)
    whole = path.read_bytes()
    frames = [match.start() for match in re.finditer(b"00dc", whole[: whole.index(b"idx1")])]
    path.write_bytes(whole[: frames[-3]])
    assert run(["count", str(path), *arguments]) == 0
    assert "it ended 3 frames before what it states" in capsys.readouterr().out
    path.write_bytes(whole[: len(whole) // 2])
    assert run(["count", str(path), *arguments]) == 1
    assert "ended after" in capsys.readouterr().out


def test_reading_goes_on_for_a_bounded_number_of_failures():
    reads = [0]

    class Endless(FakeCapture):
        def read(self):
            reads[0] += 1
            return super().read()

    stream = Stream(source(), open_=lambda _: Endless([picture(1)], frames=10**9))
    stream.start()
    until(lambda: stream.state == "ended")
    assert (reads[0], stream.damaged) == (1001, 0)


def test_a_video_of_too_many_pixels_is_refused_before_its_first_frame(tmp_path):
    """A small video whose headers, those of the JPEGs in it too, are changed to state 8,000 by 8,000 pixels."""
    path = write_video(tmp_path / "v.avi", 3)
    content = path.read_bytes().replace(struct.pack("<II", 64, 64), struct.pack("<II", 8000, 8000))
    small, large = (b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", side, side) for side in (64, 8000))
    assert content.count(small) == 3
    path.write_bytes(content.replace(small, large))
    with pytest.raises(DataError, match="too large") as caught:
        VideoCapture(find_sources([path])[0])
    assert "8000x8000" in str(caught.value)


def test_a_live_source_that_turns_too_large_is_tried_again():
    opened: list[int] = []

    def open_(_):
        opened.append(1)
        if len(opened) == 2:
            raise DataError("the pictures of the camera are too large", got="8000x8000")
        return FakeCapture([picture(len(opened))])

    stream = Stream(source(kind="url"), open_=open_, backoff_s=(0.01, 0.01))
    stream.start()
    until(lambda: stream.captured >= 2)
    assert stream.failure is None
    assert stream.stop()


# -- live streams -----------------------------------------------------------------------------------------------------


def test_a_camera_that_changes_its_size_without_closing_is_shown_at_its_first_size():
    """OpenCV scales later frames: boxes and rules stay where they are."""

    def play(send, visit):
        for number in range(30):
            size = (48, 64) if number < 10 else (96, 128)
            image = picture(0, size)
            image[: size[0] // 2] = 200
            send(jpeg(image))
            time.sleep(0.01)
        time.sleep(1)

    with mjpeg_camera(play) as address:
        capture = VideoCapture(find_sources([address])[0])
        shots = [capture.read() for _ in range(30)]
        capture.close()
    for shot in (shots[0], shots[-1]):
        assert shot is not None
        assert shot.image.shape == (48, 64, 3)
        assert abs(int(shot.image[10].mean()) - 200) < 5
        assert shot.image[40].mean() < 5


def test_a_stream_that_stalls_is_no_data_and_comes_back():
    stall = threading.Event()

    def play(send, visit):
        while True:
            send(jpeg(picture(visit, (48, 64))))
            time.sleep(0.02)
            if visit == 1 and stall.is_set():
                time.sleep(3)

    with mjpeg_camera(play) as address:
        stream = Stream(find_sources([address])[0], stall_s=0.2, backoff_s=(0.05, 0.05),
                        open_=lambda found: VideoCapture(found, timeout_ms=600))  # fmt: skip
        stream.start()
        until(lambda: stream.state == "live")
        stall.set()
        until(lambda: stream.state == "no data")
        until(lambda: stream.state == "live" and stream.reconnects == 1)
        assert stream.stop(3)


def test_garbage_in_a_stream_does_not_end_it():
    def play(send, visit):
        for number in range(40):
            send(b"\x00garbage" * 200 if number == 10 else jpeg(picture(50, (48, 64))))
            time.sleep(0.01)

    with mjpeg_camera(play) as address:
        stream = Stream(find_sources([address])[0], backoff_s=(0.02, 0.02))
        stream.start()
        until(lambda: stream.captured > 45)
        assert stream.stop(3)


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:1/live", "rtsp://u:geheim@127.0.0.1:1/live", "http://127.0.0.1:1/"]
)
def test_nobody_answers(place):
    stream = Stream(find_sources([place])[0], connect_s=0.1, backoff_s=(0.05, 0.05))
    stream.start()
    until(lambda: stream.state == "failed")
    assert "never gave a picture" in str(stream.failure)
    assert "Connection refused" in str(stream.failure)
    assert str(stream.failure).count("got:") == str(stream.failure).count("to mend it:") == 1
    assert "geheim" not in f"{stream.failure} {stream.error}"


def test_a_camera_that_is_not_there_is_told_at_once(model, tmp_path, capsys):
    assert run(["count", "987", "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "there is no camera 987" in text and text.count("got:") == text.count("to mend it:") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_host_is_told_without_its_password():
    (found,) = find_sources(["rtsp://u:geheim@no-such-host.invalid/live"])
    with pytest.raises(DataError, match="no-such-host.invalid:554") as caught:
        VideoCapture(found, timeout_ms=500)
    assert "geheim" not in str(caught.value)


def test_faults_leave_no_thread_behind():
    before = set(capture_threads())

    def play(send, visit):
        send(jpeg(picture(50, (48, 64))))

    with mjpeg_camera(play) as address:
        session = LiveSession(engine(), NAMES)
        for number in range(3):
            (found,) = find_sources([f"{address}&{number}"])
            session.add(Stream(type(found)("url", f"c{number}", found.label, found.target), backoff_s=(0.02, 0.02)))
        session.start()
        until(lambda: all(row.reconnects > 3 for row in session.status()))
        session.stop()
        until(lambda: set(capture_threads()) <= before)
