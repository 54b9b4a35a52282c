"""The API as a client meets it: pictures, limits, models, counts."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

import serve_world as world  # noqa: E402
import tiny_ir  # noqa: E402
from hawkeye.outputs import encode_jpeg  # noqa: E402
from hawkeye.runtime.detector import Detector  # noqa: E402
from hawkeye.serve.metrics import Metrics  # noqa: E402
from hawkeye.serve.problems import Busy  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "first" / "run.json").write_text("{}")
    (folder / "runs" / "first" / "report.html").write_text("<script>alert(1)</script>")
    (folder / "media").mkdir()
    config = world.config_of(folder, max_body_bytes=300_000, max_pixels=40_000, max_batch=3, media=folder / "media",
                             networks=("127.0.0.0/8",))  # fmt: skip
    with world.client_of(config) as client:
        yield client


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_detect_finds_what_the_detector_finds_however_the_picture_comes(client: TestClient, folder: Path) -> None:
    image = world.scene(size=(90, 120))
    detector = Detector(folder / "models" / "tiny", threads=1, conf=0.6, classes=["red"])
    expected = detector(image).to_records(detector.names)
    assert expected
    answers = [
        client.post("/v1/detect?conf=0.6&classes=red", content=world.png(image)),
        client.post("/v1/detect?conf=0.6&classes=2", content=world.png(image), headers={"Content-Type": "image/png"}),
        client.post("/v1/detect?conf=0.6&classes=red,2", files={"whatever": ("../../x", world.png(image))}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert [{k: v for k, v in box.items() if k != "track_id"} for box in found["detections"]] == expected
        assert (found["model"], found["width"], found["height"]) == ("tiny", 120, 90)
        assert {"decode", "wait", "pre", "network", "post", "total"} == set(found["timings_ms"])
    assert client.post("/v1/detect?model=other", content=world.png(image)).json()["model"] == "other"


def test_the_networks_input_takes_the_pictures_shape_unless_the_square_is_asked_for(tmp_path: Path) -> None:
    model = tiny_ir.stock_folder(tmp_path / "wide", stock_head=True, imgsz=[128, 128])
    tiny_ir.save_ir(model / "tiny.xml", stock_head=True, imgsz=128)
    image = world.scene(size=(90, 160))
    answers = []
    for rect in (True, False):
        config = world.config_of(tmp_path / str(rect), model=str(model), models=(), rect=rect)
        detector = Detector(model, rect=rect, threads=1, conf=0.5)
        with world.client_of(config) as client:
            found = client.post("/v1/detect", content=world.png(image)).json()["detections"]
        answers.append([box["xyxy"] for box in found])
        assert answers[-1] == detector(image).xyxy.tolist()
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("content", "query", "status", "words"),
    [
        (b"", "", 400, "there is no picture"),
        (b"GIF89a" + bytes(100), "", 400, "not a picture"),
        (world.png(world.scene())[:60], "", 400, "picture"),
        (encode_jpeg(world.scene())[:700], "", 400, "cut off"),
        (world.bomb(30_000, 30_000), "", 400, "too large"),
        (world.bomb(2000, 2000), "", 400, "too large"),
        (bytes(300_001), "", 413, "at most 300000 bytes"),
        (world.png(world.scene()), "?classes=rad", 400, "did you mean 'red'"),
        (world.png(world.scene()), "?model=none", 404, "no such model"),
        (world.png(world.scene()), "?conf=7", 422, "conf"),
        (world.png(world.scene()), "?conf=nan", 422, "conf"),
    ],
)
def test_what_cannot_be_detected_is_a_problem(
    client: TestClient, content: bytes, query: str, status: int, words: str
) -> None:
    answer = client.post(f"/v1/detect{query}", content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert words in problem["detail"]
    assert (problem["status"], problem["type"]) == (status, "about:blank")


def test_what_curl_makes_of_a_file_with_d_is_told(client: TestClient) -> None:
    good, kind = world.png(world.scene()), {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/v1/detect", content=good, headers=kind).status_code == 200, "as --data-binary sends"
    answer = client.post("/v1/detect", content=good.translate(None, b"\r\n\0"), headers=kind)
    assert (answer.status_code, "--data-binary" in answer.json()["detail"]) == (400, True)


def test_a_batch_with_a_bad_picture(client: TestClient) -> None:
    good = world.png(world.scene())
    answer = client.post("/v1/detect/batch", files=[("a", good), ("b", b"bad"), ("c", good)])
    first, second, third = answer.json()["results"]
    assert first["detections"] == third["detections"]
    assert "not a picture" in second["error"]
    many = client.post("/v1/detect/batch", files=[("a", good)] * 4)
    assert (many.status_code, "number of files is 3" in many.json()["detail"]) == (400, True)
    assert client.post("/v1/detect/batch", content=good).status_code == 400
    assert client.post("/v1/detect/batch", data={"a": "b"}, files={}).status_code == 400


def test_a_body_is_refused_before_it_is_read(client: TestClient) -> None:
    """Neither what `Content-Length` states nor what really comes may be too much."""
    read = []

    def drip() -> Iterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield bytes(10_000)

    answer = client.post("/v1/detect", content=drip())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    small = client.put("/v1/served", content=bytes(299_999), headers={"Content-Type": "application/json"})
    assert small.status_code == 400
    answer = client.post("/v1/detect", content=b"x", headers={"Content-Length": "9" * 30})
    assert answer.status_code == 413
    answer = client.post("/v1/detect", content=b"x", headers={"Content-Length": "-1"})
    assert answer.status_code == 413


def test_uploads_never_touch_a_path_that_a_client_names(
    client: TestClient, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    good = world.png(world.scene())
    before = {path for path in folder.rglob("*") if "state" not in path.parts}
    for name in (
        "../evil.png",
        "/tmp/../evil.png",
        str(tmp_path / "evil.png"),
        "evil\0.png",
        "C:\\evil.png",
        "evil.png",
    ):
        answer = client.post("/v1/detect", files={"file": (name, good)})
        assert answer.status_code == 200, name
        assert name not in answer.text
    assert not list(tmp_path.iterdir())
    assert {path for path in folder.rglob("*") if "state" not in path.parts} == before
    assert not Path("/tmp/evil.png").exists() and not Path("/evil.png").exists()


def test_over_capacity_is_503_with_retry_after_and_those_let_in_are_answered(tmp_path: Path) -> None:
    with world.client_of(world.config_of(tmp_path, workers=1, waiting=1, patience=100)) as client:
        service = world.service_of(client)
        inside, leave = threading.Semaphore(0), threading.Event()
        pool = service._models.pool(None)
        run = type(pool).detector

        def slow(self: Any, *, alone: bool) -> Any:
            inside.release()
            leave.wait(10)
            return run(self, alone=alone)

        type(pool).detector = slow  # type: ignore[method-assign]
        try:
            good = world.png(world.scene())
            with ThreadPoolExecutor(8) as threads:
                futures = [threads.submit(client.post, "/v1/detect", content=good) for _ in range(8)]
                end = time.monotonic() + 10
                while service.metrics.rejected < 6 and time.monotonic() < end:
                    time.sleep(0.01)
                assert client.get("/healthz").status_code == 200, "the rest of the service is there"
                leave.set()
                answers = [future.result() for future in futures]
        finally:
            type(pool).detector = run  # type: ignore[method-assign]
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 2 + [503] * 6
        busy = next(answer for answer in answers if answer.status_code == 503)
        assert int(busy.headers["retry-after"]) >= 1
        assert busy.headers["content-type"] == "application/problem+json"
        assert client.post("/v1/detect", content=good).status_code == 200
        assert "hawkeye_rejected_total 6.0" in client.get("/metrics").text


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    for method, path, status in (("GET", "/v1/none", 404), ("GET", "/v2/none", 404), ("PATCH", "/v1/served", 405),
                                 ("GET", "/v1/detect", 405), ("POST", "/v1/sources/x", 405)):  # fmt: skip
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), path
    assert client.get("/v1/detect").headers["allow"] == "POST"


def test_credentials_never_come_back(client: TestClient, caplog: Any) -> None:
    caplog.set_level("INFO")
    secret = "geheim42"
    with world.camera() as address:
        host = address.partition("://")[2]
        body = {"address": f"http://user:{secret}@{host}&token={secret}", "name": "secret"}
        answers = [
            client.post("/v1/sources/test", json=body),
            client.post("/v1/sources", json=body),
            client.post("/v1/sources", json=body),
            client.post("/v1/sources", json=body | {"name": "bad name!"}),
            client.post("/v1/sources", json=body | {"address": f"rtsp://u:{secret}@169.254.169.254/x", "name": "n"}),
            client.post("/v1/sources", json=body | {"address": f"rtsp://u:{secret}@no-host.invalid/x", "name": "n"}),
            client.put("/v1/alerts", json={"name": "hook", "source": "secret", "url": f"https://u:{secret}@127.0.0.1/?k={secret}",
                                           "secret": f"{secret}{secret}"}),
        ]  # fmt: skip
        assert [answer.status_code for answer in answers] == [200, 201, 400, 422, 400, 400, 200]
        for path in ("/v1/sources", "/v1/sources/secret", "/v1/alerts", "/v1/statistics", "/metrics"):
            answers.append(client.get(path))
        assert not [answer.text for answer in answers if secret in answer.text]
        assert secret not in caplog.text.replace("password=secret", "")
        client.delete("/v1/sources/secret")
        client.delete("/v1/alerts/hook")


def test_rules_models_and_comparisons(client: TestClient) -> None:
    with world.camera() as address:
        assert client.post("/v1/sources", json={"address": address, "name": "cam"}).status_code == 201
        line = {"kind": "line", "name": "a/b c", "points": [[0.5, 0], [0.5, 1]]}
        assert client.put("/v1/sources/cam/rules", json=line).json()[0]["name"] == "a/b c"
        for bad in (
            {"points": [[0.5, 0]]},
            {"points": [[0, 0], [0, 0]]},
            {"classes": ["elephant"]},
            {"kind": "circle"},
        ):
            assert client.put("/v1/sources/cam/rules", json=line | bad).status_code in (400, 422), bad
        assert len(client.get("/v1/sources/cam/rules").json()) == 1
        assert client.delete("/v1/sources/cam/rules/a%2Fb c").json() == []
        assert client.delete("/v1/sources/cam/rules/a%2Fb c").status_code == 404
        assert client.post("/v1/rollback").status_code == 400
        assert client.put("/v1/comparison", json={"model": "tiny"}).status_code == 400
        assert client.put("/v1/comparison", json={"model": "other", "every": 1}).json()["candidate"] == "other"
        until(lambda: client.get("/v1/comparison").json()["agreement"] is not None)
        found = client.delete("/v1/comparison").json()
        assert found["agreement"] == 1.0
        assert client.get("/v1/comparison").json() is None
        drops = client.get("/v1/sources/cam").json()["lost"]
        assert client.put("/v1/served", json={"model": "other"}).json()["role"] == "served"
        assert client.post("/v1/detect", content=world.png(world.scene())).json()["model"] == "other"
        done = client.get("/v1/sources/cam").json()["done"]
        until(lambda: client.get("/v1/sources/cam").json()["done"] > done + 3)
        assert client.get("/v1/sources/cam").json()["lost"] == drops
        assert client.post("/v1/rollback").json()["id"] == "tiny"
        assert client.put("/v1/served", json={"model": "none"}).status_code == 404
        client.delete("/v1/sources/cam")


def test_counts_as_json_csv_and_parquet(client: TestClient) -> None:
    store = world.service_of(client).store
    store.add({(6000 + second, "door", "gate", "", "line_s"): 1.0 for second in (0, 1, 4)})
    store.add({(6001, "door", "gate", "red", "in"): 3.0})
    asked = "/v1/counts?start=6000&end=6006&bucket_s=2&source=door&measure=in&class_name=all"
    rows = client.get(asked).json()
    assert [row["value"] for row in rows] == [3.0, None, 0.0]
    assert set(rows[0]) == {"start", "time", "seconds", "source", "rule", "class", "measure", "value", "covered"}
    text = client.get(f"{asked}&format=csv")
    assert text.headers["content-disposition"] == 'attachment; filename="counts.csv"'
    assert [row["value"] for row in csv.DictReader(io.StringIO(text.text))] == ["3.0", "", "0.0"]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(client.get(f"{asked}&format=parquet").content))
    assert table["value"].to_pylist() == [3.0, None, 0.0]
    for bad in ("start=5&end=4", "start=0&end=1e10&bucket_s=1", "bucket_s=0", "format=xls", "end=nan"):
        assert client.get(f"/v1/counts?{bad}").status_code in (400, 422), bad
    assert isinstance(client.get("/v1/counts").json(), list)
    typo = client.get("/v1/counts?source=dor")
    assert (typo.status_code, typo.json()["detail"].endswith("door")) == (404, True), "it was removed, and has counts"


def test_reports_run_nothing(client: TestClient) -> None:
    assert client.get("/v1/runs").json()[0]["id"] == "first"
    answer = client.get("/v1/runs/first/report")
    assert answer.status_code == 200
    assert "sandbox" in answer.headers["content-security-policy"]
    for name in ("none", "..%2f..", "..", "first%2f..%2ffirst", "%2fetc"):
        assert client.get(f"/v1/runs/{name}/report").status_code == 404


def test_files_come_from_the_media_folder_only(client: TestClient, folder: Path) -> None:
    for address in ("/etc/passwd", "../secret.mp4", "file:///etc/passwd", str(folder / "media" / ".." / "x.mp4")):
        answer = client.post("/v1/sources", json={"address": address, "name": "f"})
        assert answer.status_code == 400, address
        assert client.post("/v1/sources/test", json={"address": address}).json()["ok"] is False


def test_the_openapi_holds_examples(client: TestClient) -> None:
    found = client.get("/openapi.json")
    lacking = [
        f"{method} {path}: {name}"
        for path, item in found.json()["paths"].items()
        for method, operation in item.items()
        for name, place in (*((each["name"], each["schema"]) for each in operation.get("parameters", ())),
                            *operation.get("requestBody", {"content": {}})["content"].items())
        if not {"example", "examples"} & set(place)
    ]  # fmt: skip
    assert not lacking
    text = found.text
    for words in ("rtsp://192.168.1.20/stream1", "multipart/form-data", "image/jpeg", "application/problem+json"):
        assert words in text


def test_busy_tells_when_to_come_again() -> None:
    assert Busy(0.3).retry_s == 0.3


def until(condition: Any, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_the_load_of_the_machine_is_known_whichever_thread_asks(monkeypatch: Any) -> None:
    monkeypatch.setattr("hawkeye.serve.metrics._SAMPLE_S", 0.0)
    metrics = Metrics()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    with ThreadPoolExecutor(1) as pool:
        _, machine = pool.submit(metrics.processor).result()
    assert 0 < machine <= 100
