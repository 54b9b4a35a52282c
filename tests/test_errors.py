"""The tree of errors, as drawn at the top of its file; and importing does nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hawkeye import errors
from hawkeye.errors import EXIT_GATE_MISSED, HawkeyeError, InputError, MissingExtraError

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HawkeyeError)]
SOURCE = Path(errors.__file__).parent
# A machine with the core alone: none of the extras can be imported.
NO_EXTRAS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import {module}
heavy = {{"torch", "ultralytics", "openvino", "onnxruntime", "matplotlib", "faster_coco_eval"}} & sys.modules.keys()
assert not heavy, f"imported at once: {{heavy}}"
"""
EXTRAS = {"torch", "torchvision", "ultralytics", "nncf", "torch_pruning", "onnx", "onnxruntime", "lightning_fabric",
          "matplotlib", "ray"}  # fmt: skip
# The files that a foreign library has are imported lazily themselves, and may import it at once.
OWN_FILES = {"hawkeye.runtime.core", "hawkeye.runtime.head", "hawkeye.runtime.ir", "hawkeye.runtime.openvino",
             "hawkeye.runtime.onnx", "hawkeye.runtime.serving", "hawkeye.report_plots"}  # fmt: skip
CORE = sorted(
    {
        ".".join(("hawkeye", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in ("compress", "scale", "serve")
    }
    - OWN_FILES
)


def test_every_error_stands_in_the_drawing_at_its_depth_with_its_exit_code() -> None:
    drawing = errors.__doc__ or ""
    for cls in CLASSES:
        line = next((line for line in drawing.splitlines() if re.search(rf"\b{cls.__name__}\b", line)), None)
        assert line is not None, f"{cls.__name__} is missing in the drawing"
        depth = len(cls.__mro__) - len(HawkeyeError.__mro__)
        assert line.index(cls.__name__) == 4 * depth
        stated = re.search(r"exit (\d)", line)
        assert cls.exit_code == (int(stated[1]) if stated else 2), line


def test_exit_codes() -> None:
    assert HawkeyeError.exit_code == 1 and InputError.exit_code == 2 and EXIT_GATE_MISSED == 3


def test_message_says_what_was_got_expected_and_how_to_mend_it() -> None:
    error = InputError("a bound cannot be used", got=0, expected="more than 0", mend="give --flops 0.7")
    assert str(error).splitlines() == [
        "a bound cannot be used", "  got: 0", "  expected: more than 0", "  to mend it: give --flops 0.7",
    ]  # fmt: skip
    assert error.summary == "a bound cannot be used" and str(InputError("only this")) == "only this"


def test_missing_extra_names_the_pip_line() -> None:
    error = MissingExtraError("compress", "torch")
    assert error.exit_code == 2 and "pip install 'hawkeye[compress]'" in str(error) and "'torch'" in str(error)


@pytest.mark.parametrize("module", CORE)
def test_core_imports_without_extras_and_without_weight(module: str) -> None:
    program = NO_EXTRAS.format(extras=EXTRAS, module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == "", "importing says nothing"
