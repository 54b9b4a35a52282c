"""KServe's protocol, and the OpenAPI thrown at the service itself."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

import serve_world as world  # noqa: E402
from hawkeye.serve.kserve import Inferred  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    config = world.config_of(tmp_path_factory.mktemp("kserve"), max_body_bytes=300_000, max_pixels=40_000)
    with world.client_of(config) as client:
        yield client


# -- KServe -----------------------------------------------------------------------------------------------------------


def test_kserve_finds_what_detect_finds(client: TestClient) -> None:
    image = world.scene(size=(90, 120))
    expected = client.post("/v1/detect?conf=0.6", content=world.png(image)).json()["detections"]
    assert expected
    pixels = np.ascontiguousarray(image[:, :, ::-1])
    file = world.png(image)
    tensor = {"name": "image", "shape": [1, 90, 120, 3], "datatype": "UINT8"}
    parameters = {"conf": 0.6}
    as_json = {"id": "7", "parameters": parameters, "inputs": [tensor | {"data": pixels.ravel().tolist()}]}
    nested = as_json | {"inputs": [tensor | {"data": pixels[None].tolist()}]}
    as_file = as_json | {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES",
                                     "data": [base64.b64encode(file).decode()]}]}  # fmt: skip
    for path in ("/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"):
        for body in (as_json, nested, as_file):
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert Inferred.model_validate(found).model_dump(mode="json", exclude_unset=True) == found, (
                "as its schema says"
            )
            assert (found["id"], found["model_name"], found["model_version"]) == ("7", "tiny", "1")
            outputs = {output["name"]: output for output in found["outputs"]}
            assert outputs["boxes"]["shape"] == [len(expected), 4]
            boxes = np.array(outputs["boxes"]["data"]).reshape(-1, 4)
            assert np.allclose(boxes, [box["xyxy"] for box in expected], atol=0.01)
            assert np.allclose(outputs["scores"]["data"], [box["score"] for box in expected], atol=1e-4)
            assert outputs["class_ids"]["data"] == [box["class_id"] for box in expected]
            assert outputs["class_names"]["data"] == [box["name"] for box in expected]


def test_kserve_is_counted_as_a_request(client: TestClient) -> None:
    def asked() -> tuple[int, int]:
        facts = client.get("/v1/statistics").json()
        return facts["requests"], sum(facts["stages"]["total"]["counts"])

    before = asked()
    assert client.post("/v2/models/tiny/infer", json={"inputs": [_FINE]}).status_code == 200
    assert asked() == (before[0] + 1, before[1] + 1)


def test_kserve_takes_and_gives_bytes(client: TestClient) -> None:
    image = world.scene(size=(90, 120))
    plain = client.post("/v2/models/tiny/infer", json={"inputs": [
        {"name": "image", "shape": [1, 90, 120, 3], "datatype": "UINT8", "data": image[:, :, ::-1].ravel().tolist()}]},
    ).json()  # fmt: skip
    raw = image[:, :, ::-1].tobytes()
    file = world.png(image)
    for kind, shape, data in (("UINT8", [1, 90, 120, 3], raw), ("BYTES", [1], len(file).to_bytes(4, "little") + file)):
        head = json.dumps({"outputs": [{"name": "boxes", "parameters": {"binary_data": True}}, {"name": "scores"}],
                           "inputs": [{"name": "image", "shape": shape, "datatype": kind,
                                       "parameters": {"binary_data_size": len(data)}}]}).encode()  # fmt: skip
        answer = client.post("/v2/models/tiny/infer", content=head + data,
                             headers={"Inference-Header-Content-Length": str(len(head)),
                                      "Content-Type": "application/octet-stream"})  # fmt: skip
        assert answer.status_code == 200, answer.text
        length = int(answer.headers["inference-header-content-length"])
        outputs = json.loads(answer.content[:length])["outputs"]
        assert [output["name"] for output in outputs] == ["boxes", "scores"]
        boxes = np.frombuffer(answer.content[length:], "<f4")
        assert np.allclose(boxes, plain["outputs"][0]["data"])
        assert outputs[0]["parameters"]["binary_data_size"] == boxes.nbytes


_FINE = {"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 12}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        json.dumps({"inputs": []}).encode(),
        json.dumps({"inputs": [_FINE, _FINE]}).encode(),
        *(json.dumps({"inputs": [_FINE | bad]}).encode() for bad in (
            {"name": "x"}, {"shape": [2, 2]}, {"shape": [1, 2, 2, 4]}, {"shape": [1, 10**9, 10**9, 3]},
            {"shape": [1, -1, -12, 3]}, {"data": [0] * 11}, {"data": [256] * 12}, {"data": [-1] * 12},
            {"data": [0.5] * 12}, {"data": ["a"] * 12}, {"data": [[0], [0, 1]]}, {"data": None},
            {"parameters": {"binary_data_size": 12}}, {"datatype": "FP32"},
            {"datatype": "BYTES", "shape": [1], "data": ["%%%"]}, {"datatype": "BYTES", "shape": [1], "data": ["YQ=="]},
            {"datatype": "BYTES", "shape": [1], "data": [base64.b64encode(world.bomb(9000, 9000)).decode()]},
        )),
        json.dumps({"inputs": [_FINE], "parameters": {"conf": 7}}).encode(),
        json.dumps({"inputs": [_FINE], "parameters": {"classes": ["elephant"]}}).encode(),
        json.dumps({"inputs": [_FINE], "outputs": [{"name": "none"}]}).encode(),
    ],
)  # fmt: skip
def test_kserve_refuses_what_is_wrong(client: TestClient, body: bytes) -> None:
    answer = client.post("/v2/models/tiny/infer", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


def test_kserve_metadata(client: TestClient) -> None:
    assert client.get("/v2").json()["name"] == "hawkeye"
    found = client.get("/v2/models/tiny").json()
    assert found == client.get("/v2/models/tiny/versions/1").json()
    assert found["inputs"][0]["name"] == "image"
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/none").status_code == 404
    assert client.get("/v2/models/none").json()["error"]
    assert client.get("/v2/models/tiny/versions/2").status_code == 422


# -- its own OpenAPI --------------------------------------------------------------------------------------------------


def test_nothing_that_the_openapi_allows_is_an_error_of_ours(tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    requests = pytest.importorskip("requests")
    from hypothesis import HealthCheck, Phase, given, settings

    config = world.config_of(tmp_path, token=world.token_tables(), max_sources=3)
    with world.client_of(config) as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json", headers=world.bearer("admin")).json())
        now = int(time.time())
        world.service_of(client).store.add({(now - 2, "door", "gate", "", "line_s"): 1.0,
                                            (now - 2, "door", "gate", "red", "in"): 3.0})  # fmt: skip
        counted: dict[int, int] = {}
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path.endswith("/mjpeg"):
                continue  # has no end; see test_serve_live.py

            @settings(
                max_examples=12,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def fuzz(case: Any) -> None:
                try:
                    sent = requests.Request(**case.as_transport_kwargs(base_url="http://127.0.0.1")).prepare()
                except (UnicodeError, ValueError, AttributeError, requests.RequestException):
                    return  # what no HTTP client sends
                headers = {**sent.headers, **world.bearer("admin")}
                body = sent.body.encode() if isinstance(sent.body, str) else sent.body
                answer = client.request(sent.method, f"http://127.0.0.1{sent.path_url}", headers=headers, content=body)
                # 503 and 501 say what they mean; anything else from 500 on is a mistake of ours.
                assert answer.status_code < 500 or answer.status_code in (501, 503), (
                    f"{sent.method} {sent.path_url}: {answer.status_code} {answer.text[:300]}"
                )
                case.operation.validate_response(answer, case=case)  # is what the schema says
                counted[answer.status_code] = counted.get(answer.status_code, 0) + 1

            fuzz()
        assert sum(counted.values()) > 300
        assert counted[200] > 30, counted
        assert client.get("/readyz").status_code == 200
