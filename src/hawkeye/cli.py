"""The `hawkeye` command: a table of commands, each imported when it is used, and one place for errors.

Exit codes: 0 done and all gates passed, 1 something went wrong while working, 2 bad input, 3 a gate was missed
(everything is written), 4 an input has changed (`plan --check`), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from hawkeye import __version__
from hawkeye.errors import HawkeyeError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_NATIVE = ("capture ", "inference", "leaving a backend")  # threads of `runtime.stream` and `runtime.engine`

_HELP = """Makes a trained YOLO detector small and fast on ordinary CPUs, proves it, and runs it.

Start with `hawkeye demo`, or with your own detector:

    hawkeye optimize yolov8n.pt --data data.yaml --out runs/first
"""
# command: (implementation, its line in the list of commands)
COMMANDS = {
    "optimize": ("hawkeye.commands:optimize", "Compress a detector and prove it: all stages, one report."),
    "demo": ("hawkeye.commands:demo", "See it all, offline: draw data, train, compress, report."),
    "inspect": ("hawkeye.commands:inspect", "Layers, sizes and coupled channels of a checkpoint."),
    "profile": ("hawkeye.latency_commands:profile", "What each layer costs on this CPU, by its widths."),
    "frontier": ("hawkeye.latency_commands:frontier", "Accuracy over latency, beside the stock rivals."),
    "prune": ("hawkeye.stage_commands:prune", "Remove channels."),
    "recover": ("hawkeye.stage_commands:recover", "Win back accuracy by distillation from the original."),
    "export": ("hawkeye.stage_commands:export", "Write ONNX and OpenVINO, compared with PyTorch."),
    "quantize": ("hawkeye.stage_commands:quantize", "Make INT8 of an exported model."),
    "diagnose": ("hawkeye.stage_commands:diagnose", "Find where accuracy is lost between PyTorch and INT8."),
    "evaluate": ("hawkeye.stage_commands:evaluate", "Measure mAP on labelled pictures."),
    "benchmark": ("hawkeye.stage_commands:benchmark", "Measure latency, interleaved over models and runtimes."),
    "plan": ("hawkeye.plan_commands:plan", "What a run would do, reuse, and take; whether its inputs have changed."),
    "release": ("hawkeye.store_commands:release", "Put a run's detector into a model store as the released version."),
    "rollback": ("hawkeye.store_commands:rollback", "Make an earlier version of a store the released one again."),
    "list": ("hawkeye.store_commands:list_", "List the versions of a model store."),
    "diff": ("hawkeye.store_commands:diff", "Tell two versions apart: figures, classes, pictures."),
    "report": ("hawkeye.commands:report", "Write the report of a run's folder again."),
    "predict": ("hawkeye.live_commands:predict", "Find objects in pictures, videos and live streams."),
    "count": ("hawkeye.live_commands:count", "Count what crosses lines and enters zones."),
    "sweep": ("hawkeye.sweep_commands:sweep", "Search settings for the front of accuracy and latency."),
    "batch": ("hawkeye.batch_commands:batch", "Find objects in millions of pictures, on many cores or machines."),
    "serve": ("hawkeye.serve_commands:app", "Serve live detection and counting: web pages and an API."),
    "doctor": ("hawkeye.doctor_commands:doctor", "What this machine can do, and what a model costs here."),
}


def make_app(wanted: str | None = None) -> App:
    """The command line, nothing of it imported yet.

    The line of the table stands in for a command's docstring, so that the list of commands imports none of them; the
    command that is `wanted` is imported anyway, and shows its whole docstring.
    """
    app = App(name="hawkeye", version=__version__, help=_HELP, help_format="markdown", result_action="return_value",
              suppress_keyboard_interrupt=False)  # fmt: skip
    for name, (target, line) in COMMANDS.items():
        app.command(target, name=name, help=None if name == wanted else line)
    return app


def run(arguments: Sequence[str], *, app: App | None = None) -> int:
    """Run one command and return its exit code; errors become text on standard error, never a traceback."""
    app = app or make_app(next(iter(arguments), None))
    try:
        result = app(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
        print(f"error: {error}", file=sys.stderr)
        print(f"see: {' '.join(['hawkeye', *command.split(), '--help'])}", file=sys.stderr)
        return EXIT_USAGE
    except HawkeyeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: start the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the `hawkeye` script."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `hawkeye inspect yolov8n.pt | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        code = EXIT_BROKEN_PIPE
    if any(thread.name.startswith(_NATIVE) for thread in threading.enumerate()):
        # One that hangs in native code aborts the process (exit code 134) when it comes back into an interpreter that
        # is at its end. All files are closed by now.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
