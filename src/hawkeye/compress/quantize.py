"""INT8: calibration, and where that loses too much, some layers in float or training with fake quantization.

Every step is judged on training pictures that neither calibration nor training has seen, and the better one is kept.
"""

from __future__ import annotations

from pathlib import Path

from hawkeye import artifact, keys
from hawkeye.artifact import Artifact
from hawkeye.compress.calibrate import calibrate
from hawkeye.config import QuantizeConfig


def quantize(source: Artifact, config: QuantizeConfig, *, out: Path) -> Artifact:
    """Quantize an exported detector to INT8, as OpenVINO IR and as Q/DQ ONNX that hold the same integers.

    Pictures come from the training split or the folder of unlabelled pictures, never from validation.

    Args:
        source: an artefact with ONNX and OpenVINO files.
        config: settings; `data` or `images` is needed.
        out: folder that everything is written to.

    Raises:
        DataError: fewer than 10 calibration pictures.
        ModelError: the artefact is not exported.
        ConfigError: another imgsz than the export's.
        ExportError: a convolution was not quantized, the decode was, or the two files disagree.
    """
    source.path("openvino"), source.path("onnx")
    pictures, held, key = keys.quantize(source.sha256, config)
    if (done := artifact.reuse(out, key)) is not None:
        return done
    return calibrate(source, config, pictures, out=out, key=key)
