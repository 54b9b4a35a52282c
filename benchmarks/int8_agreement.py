"""Where PyTorch, OpenVINO and ONNX Runtime part in INT8: integers of each quantized map, from the first to the last.

    python benchmarks/int8_agreement.py runs/first/4-quantize/original --images pictures/

For each map that is quantized: the share of its integers that OpenVINO and ONNX Runtime round otherwise than the
fake-quantized network in PyTorch, and by how many steps at most; then the distance of the raw outputs. With --exact
also OpenVINO with its INT8 kernels off, so that it computes the fake-quantized graph in float. Prints Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hawkeye.artifact import Artifact
from hawkeye.compress import fake_quantize, yolo
from hawkeye.compress.diagnose import find_parent
from hawkeye.compress.export import INPUT, OUTPUT, canvas_of
from hawkeye.compress.int8_checks import distance
from hawkeye.compress.quantizers import Quantization, load
from hawkeye.data import list_images, sample
from hawkeye.report_text import markdown_table
from hawkeye.runtime.core import core

Maps = dict[str, NDArray[np.int16]]  # integers of each quantized map by its node


def integers(values: NDArray[np.float32], quantization: Quantization, node: str) -> NDArray[np.int16]:
    """Of a map that has been through its quantizer."""
    activation = quantization.activations[node]
    return (np.rint(values / activation.scale) + activation.zero_point).astype(np.int16)


class InTorch:
    """The fake-quantized network."""

    def __init__(self, base: Artifact, quantization: Quantization) -> None:
        self.quantization = quantization
        network = yolo.folded(yolo.load_checkpoint(base.path("pytorch")).model)
        self.network = fake_quantize.mirror(network, quantization, trained=False).eval()
        self.calls: dict[int, list[Tensor]] = {}
        self.of = fake_quantize.activation_quantizers(self.network, quantization)
        for quantizer in {id(q): q for q in self.of.values()}.values():
            quantizer.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.calls.setdefault(id(module), []).append(output)

    def __call__(self, canvas: NDArray[np.float32]) -> tuple[Maps, NDArray[np.float32]]:
        """Maps that share a range share a quantizer, which is called in the order of the maps."""
        self.calls.clear()
        with torch.no_grad():
            raw: NDArray[np.float32] = self.network(torch.from_numpy(canvas))[0].numpy()
        left = {key: iter(values) for key, values in self.calls.items()}
        order = [node for node, activation in self.quantization.activations.items() if activation.on]
        return {n: integers(next(left[id(self.of[n])]).numpy(), self.quantization, n) for n in order}, raw


class InOpenVino:
    """The IR, with every quantized map as an output."""

    def __init__(self, path: Path, quantization: Quantization, config: dict[str, Any]) -> None:
        self.quantization = quantization
        model = core().read_model(path)
        quantizers = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
        self.nodes = [node.input_value(0).get_node().get_friendly_name() for node in quantizers]
        model.add_outputs([node.output(0) for node in quantizers])
        self.compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **config})

    def __call__(self, canvas: NDArray[np.float32]) -> tuple[Maps, NDArray[np.float32]]:
        found = self.compiled(canvas)
        maps = {n: integers(found[i + 1], self.quantization, n) for i, n in enumerate(self.nodes)}
        return maps, np.array(found[0])


class InOnnxRuntime:
    """The Q/DQ graph, with every quantized map as an output."""

    def __init__(self, path: Path, quantization: Quantization) -> None:
        graph = onnx.load(path)
        made = {node.name: node.output[0] for node in graph.graph.node} | {INPUT: INPUT}
        self.nodes = [node for node, activation in quantization.activations.items() if activation.on]
        self.names = [f"{made[node]}_quantized" for node in self.nodes]
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.names)
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def __call__(self, canvas: NDArray[np.float32]) -> tuple[Maps, NDArray[np.float32]]:
        raw, *maps = self.session.run([OUTPUT, *self.names], {INPUT: canvas})
        return {node: values.astype(np.int16) for node, values in zip(self.nodes, maps, strict=True)}, raw


def main() -> None:
    """Compare map by map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("int8", type=Path, help="folder of a quantized artefact")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--exact", action="store_true")
    args = parser.parse_args()
    made = Artifact.load(args.int8)
    base = find_parent(made)
    record = load(made.path("openvino"), base.path("onnx"))
    torchs = InTorch(base, record)
    others: dict[str, Any] = {"OpenVINO": InOpenVino(made.path("openvino"), record, {})}
    if args.exact:
        others["OpenVINO, float kernels"] = InOpenVino(made.path("openvino"), record, {"LP_TRANSFORMS_MODE": "NO"})
    others["ONNX Runtime"] = InOnnxRuntime(made.path("onnx"), record)
    differ: dict[tuple[str, str], list[float]] = {}
    most: dict[tuple[str, str], int] = {}
    raws: dict[str, list[NDArray[np.float32]]] = {}
    for path in sample(list_images(args.images), args.samples, 0):
        canvas = canvas_of(path, made.spec.imgsz)[None]
        maps, raw = torchs(canvas)
        raws.setdefault("PyTorch", []).append(raw)
        for name, other in others.items():
            theirs, raw = other(canvas)
            raws.setdefault(name, []).append(raw)
            for node, values in maps.items():
                gap = np.abs(values - theirs[node])
                differ.setdefault((node, name), []).append(float((gap > 0).mean()))
                most[node, name] = max(most.get((node, name), 0), int(gap.max()))
    body = [[node, *[f"{100 * np.mean(differ[node, name]):.4f} ({most[node, name]})" for name in others]]
            for node in record.activations if (node, "OpenVINO") in differ]  # fmt: skip
    print("\n".join(markdown_table(["map", *[f"{name}: % otherwise (steps)" for name in others]], body)))
    joined = {name: np.concatenate(values) for name, values in raws.items()}
    names = list(joined)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            print(f"{a} - {b}: {distance(joined[a], joined[b])}")


if __name__ == "__main__":
    main()
