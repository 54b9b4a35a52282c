"""`Detector` on Ultralytics' own exports of the real yolov8n, against stock predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
for _package in ("ultralytics", "onnx", "onnxruntime"):
    pytest.importorskip(_package)

from ultralytics import YOLO  # noqa: E402

from hawkeye.errors import ModelError  # noqa: E402
from hawkeye.geometry import Letterbox, iou_matrix  # noqa: E402
from hawkeye.runtime.detector import Detector  # noqa: E402

pytestmark = [pytest.mark.compress, pytest.mark.realdata]


@pytest.fixture(scope="module")
def stock_exports(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """yolov8n.pt and its stock OpenVINO and ONNX exports."""
    folder = tmp_path_factory.mktemp("stock")
    checkpoint = Path(shutil.copyfile(real_data / "models/yolov8n.pt", folder / "yolov8n.pt"))
    model = YOLO(checkpoint)
    return checkpoint, Path(model.export(format="openvino", verbose=False)), Path(
        model.export(format="onnx", simplify=False, verbose=False)
    )  # fmt: skip


@pytest.mark.parametrize("which", ["a tenth", pytest.param("the rest", marks=pytest.mark.slow)])
def test_detector_agrees_with_stock_predictions(real_data, stock_exports, which):
    """Boxes within a pixel and scores within 0.01 of stock YOLO on the same input, on all pictures.

    Stock exports, loaded as they are: ONNX, OpenVINO, and OpenVINO given another input size than it was made for, all
    in the square; and OpenVINO in the picture's shape, wherever stock YOLO's least rectangle is the same one.
    """
    checkpoint, openvino, onnx = stock_exports
    stock = YOLO(checkpoint)
    detectors = [Detector(openvino, rect=False), Detector(onnx), Detector(openvino, rect=False, imgsz=320),
                 Detector(openvino)]  # fmt: skip
    assert detectors[0].names[9] == "traffic light"
    with pytest.raises(ModelError, match="does not take pictures of 320"):
        Detector(onnx, imgsz=320)
    pictures = sorted((real_data / "coco-sample/images/val2017").glob("*.jpg"))
    pictures = [path for number, path in enumerate(pictures) if (number % 10 == 0) == (which == "a tenth")]
    total = wide = 0
    for path in pictures:
        image = cv2.imread(str(path))
        expected = {
            (size, rect): stock.predict(image, imgsz=size, conf=0.25, iou=0.7, rect=rect, verbose=False)[0].boxes
            for size, rect in ((640, False), (320, False), (640, True))
        }
        for detector in detectors:
            rect = detector is detectors[-1]
            if rect:
                least = tuple(-(-side // 32) * 32 for side in Letterbox.fit(image.shape[:2], 640).inner_hw)
                if detector.prepare(image.shape[:2]) != least:
                    continue  # stock YOLO has more shapes
                wide += least != (640, 640)
            boxes = expected[detector.spec.imgsz, rect]
            xyxy, score, cls = boxes.xyxy.numpy(), boxes.conf.numpy(), boxes.cls.numpy().astype(int)
            if not len(score):
                assert (found_score := detector(image).score).size == 0 or found_score.max() < 0.26
                continue
            found = detector(image)
            sure = score > 0.26  # a score beside the threshold may fall on either side of it
            overlap = iou_matrix(xyxy, found.xyxy) * (cls[:, None] == found.class_id[None])
            partner = overlap.argmax(axis=1)[sure]
            assert np.abs(found.xyxy[partner] - xyxy[sure]).max(initial=0) < 1, path.name
            assert np.abs(found.score[partner] - score[sure]).max(initial=0) < 0.01, path.name
            assert abs(len(found) - len(score)) <= (~sure).sum() + (found.score < 0.26).sum()
            total += int(sure.sum())
    assert total > 10 * len(pictures)
    assert wide > 0.2 * len(pictures)


@pytest.mark.parametrize(
    ("options", "largest_px"),
    [({"format": "openvino", "half": True}, 2), ({"format": "openvino", "dynamic": True}, 1),
     ({"format": "onnx", "dynamic": True}, 1), ({"format": "onnx", "opset": 13}, 1)],
)  # fmt: skip
def test_other_stock_exports_load_unchanged(real_data, stock_exports, tmp_path, options, largest_px):
    checkpoint = Path(shutil.copyfile(stock_exports[0], tmp_path / "yolov8n.pt"))
    rect = options["format"] == "openvino" or options.get("dynamic", False)  # a static ONNX file takes squares only
    detector = Detector(Path(YOLO(checkpoint).export(verbose=False, **options)), threads=1)
    reference = Detector(stock_exports[1], rect=rect, threads=1)
    assert detector.prepare((480, 640)) == ((480, 640) if rect else (640, 640))
    assert detector.names == reference.names
    for path in sorted((real_data / "coco-sample/images/val2017").glob("*.jpg"))[:4]:
        image = cv2.imread(str(path))
        expected, found = reference(image), detector(image)
        sure = expected.score > 0.3
        overlap = iou_matrix(expected.xyxy, found.xyxy) * (expected.class_id[:, None] == found.class_id[None])
        partner = overlap.argmax(axis=1)[sure]
        assert np.abs(found.xyxy[partner] - expected.xyxy[sure]).max(initial=0) < largest_px
        assert np.abs(found.score[partner] - expected.score[sure]).max(initial=0) < 0.01


def test_an_export_with_built_in_suppression_is_refused(real_data, tmp_path):
    checkpoint = Path(shutil.copyfile(real_data / "models/yolov8n.pt", tmp_path / "yolov8n.pt"))
    made = Path(YOLO(checkpoint).export(format="onnx", nms=True, verbose=False))
    with pytest.raises(ModelError, match="export it with nms=False"):
        Detector(made, threads=1)
