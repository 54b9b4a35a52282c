"""What can be served, what is, and detectors for pictures that are sent."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hawkeye.detections import Detections
from hawkeye.errors import ConfigError, DataError, ModelError
from hawkeye.runtime.choice import open_engine
from hawkeye.runtime.detector import Detector, class_indices
from hawkeye.runtime.engine import Engine
from hawkeye.serve.catalogue import DEMO, Entry, entries_of
from hawkeye.serve.config import ServeConfig
from hawkeye.serve.metrics import Metrics
from hawkeye.serve.pictures import decode_for
from hawkeye.serve.places import Places
from hawkeye.serve.problems import Busy, NotFound
from hawkeye.serve.schemas import Box, Detected, Detecting, Failed, ModelInfo
from hawkeye.serve.store import Store

log = logging.getLogger("hawkeye.serve")
_LOADED = 3  # models beside the served one that requests may keep in memory
_HISTORY = 20
LIVE_CONF = 0.1  # the tracker also wants what is hardly seen: it prolongs tracks and begins none


class Pool:
    """Detectors of one model, each for one thread at a time.

    A picture that is alone has all cores for itself, and is answered soonest. Several at the same time go to replicas
    that share the cores: more of them per second, as no core waits for another. Where the settings say how many workers
    there are, or the runtime has no replicas, all pictures go to those workers.
    """

    def __init__(self, entry: Entry, config: ServeConfig) -> None:
        self.id, self._config = entry.id, config
        self._place = entry.place()
        self._first = self._open()
        self.names, self.spec = self._first.names, self._first.spec
        self.precision = getattr(self._first.runtime, "precision_executed", "")
        self._first(np.full((64, 64, 3), 114, np.uint8))  # the first picture must not wait for what is made lazily
        runtime = self._first.runtime
        self._sharing = not config.workers and runtime.threads > 1 and hasattr(runtime, "replicas")
        self._alone, self._opening = threading.Lock(), threading.Lock()
        self._several: queue.LifoQueue[Detector] | None = None
        self._count = 0

    def open_all(self) -> int:
        """Open what works on several pictures at the same time; waits for a compilation, once.

        Returns:
            how many there may be.
        """
        self._opened()
        return self._count

    def close_replicas(self) -> None:
        """Let go of the memory of what `open_all` has opened, once nobody works with it; it can be opened again."""
        if self._sharing:
            with self._opening:
                self._several = None

    @contextmanager
    def detector(self, *, alone: bool) -> Iterator[Detector]:
        """A detector for this thread. Waits while all are busy.

        Args:
            alone: nobody else works on a picture.
        """
        if alone and self._sharing:
            with self._alone:
                yield self._first
            return
        several = self._opened()
        detector = several.get()
        try:
            yield detector
        finally:
            several.put(detector)

    def _opened(self) -> queue.LifoQueue[Detector]:
        with self._opening:
            if self._several is None:
                detectors = (self._first.replicas() if self._sharing else
                             [self._first, *(self._open() for _ in range(self._config.workers - 1))])  # fmt: skip
                self._several, self._count = queue.LifoQueue(), len(detectors)
                for detector in detectors:
                    self._several.put(detector)
            return self._several

    def _open(self) -> Detector:
        return Detector(self._place, rect=self._config.rect, threads=self._config.threads)


class Models:
    """See the head of this file; safe to use from several threads.

    Attributes:
        served: id of the served model.
    """

    def __init__(self, config: ServeConfig, store: Store, metrics: Metrics) -> None:
        self._config, self._store, self._metrics = config, store, metrics
        self.served = ""
        self.candidate: str | None = None
        self._history: list[str] = []
        self._pools: OrderedDict[str, Pool] = OrderedDict()
        self._opening = threading.Lock()
        self._places = self._places_for(1)

    def start(self) -> None:
        """Open the model that was served last, or the best there is. Waits for its compilation.

        Raises:
            ModelError: there is none, or it cannot be used.
        """
        entries = self.entries()
        kept = self._store.documents("setting").get("model", {})
        named = self._config.model or DEMO
        wanted = kept.get("served") if kept.get("named") == named else None
        if wanted is not None and wanted not in entries:
            log.warning("model %s is gone; serving the best instead", wanted)
        self._history = [name for name in kept.get("history", []) if name in entries]
        self.serve(wanted if wanted in entries else next(iter(entries)), remember=False)
        self._places = self._places_for(self.pool(None).open_all())

    def stop(self) -> None:
        """Let go of all detectors."""
        with self._opening:
            self._pools.clear()

    def entries(self) -> dict[str, Entry]:
        """Every model that can be chosen. Reads folders.

        Raises:
            ModelError: there is none.
        """
        model = self._config.model
        if model is None:
            if not Path(DEMO).is_dir():
                raise ModelError("no model was named, and the demo has not run here", got=f"no folder {DEMO}",
                                 mend="`hawkeye serve RUN`, or `hawkeye demo` first")  # fmt: skip
            model = DEMO
        return entries_of((model, *self._config.models))

    def entry(self, model: str) -> Entry:
        """One model.

        Raises:
            NotFound: none of this id.
        """
        entries = self.entries()
        if model not in entries:
            raise NotFound("model", model, entries)
        return entries[model]

    def infos(self) -> list[ModelInfo]:
        """See `Service.models`."""
        infos = [self.info(entry) for entry in self.entries().values()]
        return sorted(infos, key=lambda info: info.role != "served")

    def info(self, entry: Entry) -> ModelInfo:
        """What is known of a model."""
        artifact, pool = entry.artifact, self._pools.get(entry.id)
        role = ("served" if entry.id == self.served else "candidate" if entry.id == self.candidate
                else "loaded" if pool else "available")  # fmt: skip
        spec = pool.spec if pool else artifact.spec if artifact else None
        files = [artifact.files[kind] for kind in ("openvino", "onnx") if kind in artifact.files] if artifact else []
        size = files[0].bytes if files else entry.source.stat().st_size if entry.source.is_file() else None
        why = None if artifact is None or files else f"only {', '.join(artifact.files)} in it"
        return ModelInfo(
            id=entry.id, role=role, name=artifact.name if artifact else entry.id, bytes=size,  # type: ignore[arg-type]
            imgsz=spec.imgsz if spec else None, classes=spec.names if spec else (),
            precision=pool.precision if pool else None, created=artifact.created if artifact else None,
            row=entry.row(), why_not=why,
        )  # fmt: skip

    @property
    def names(self) -> tuple[str, ...]:
        """Class names of the served model."""
        return self._pools[self.served].names

    def pool(self, model: str | None) -> Pool:
        """Detectors of a model; waits for its compilation where it is not loaded.

        Raises:
            NotFound: none of this id.
            ModelError: cannot be opened.
        """
        name = model or self.served
        if (pool := self._pools.get(name)) is not None:
            return pool
        with self._opening:
            if (pool := self._pools.get(name)) is None:
                pool = self._pools[name] = Pool(self.entry(name), self._config)
                spare = [key for key in self._pools if key not in (name, self.served, self.candidate)]
                for key in spare[: max(0, len(spare) - _LOADED + 1)]:
                    del self._pools[key]  # whoever still uses it keeps it until the answer
        return pool

    def serve(self, model: str, *, remember: bool = True) -> None:
        """Requests without a model get this one from now on.

        Raises:
            NotFound, ModelError: see `pool`; the served one stays.
        """
        pool = self.pool(model)
        if self._history[-1:] == [model]:
            self._history.pop()  # back to where it came from
        elif self.served and self.served != model:
            self._history = [*self._history, self.served][-_HISTORY:]
        before, self.served = self._pools.get(self.served), model
        if before is not None and before is not pool:
            before.close_replicas()
        log.info("serving %s (%s)", model, pool.precision)
        if remember:
            self._store.put("setting", "model", {"named": self._config.model or DEMO, "served": model,
                                                 "history": self._history})  # fmt: skip

    def previous(self) -> str:
        """Id of the model that was served before.

        Raises:
            ConfigError: there was none.
        """
        if not self._history:
            raise ConfigError("there is no model to go back to", got="none was served before this one")
        return self._history[-1]

    def engine(self, model: str) -> tuple[Engine, tuple[str, ...]]:
        """An engine for live frames, and the class names. Waits for the compilation.

        As `hawkeye count` has it, one box for each object: "bottle" and "vase" in one place would become two tracks.

        Raises:
            NotFound, ModelError: see `pool`.
        """
        engine, names, words = open_engine(self.entry(model).place(), kind=self._config.engine, rect=self._config.rect,
                                           conf=LIVE_CONF, iou=self._config.iou, agnostic=True,
                                           threads=self._config.threads)  # fmt: skip
        log.info("live engine of %s: %s", model, words)
        return engine, names

    def detector(self, model: str) -> Detector:
        """A detector of its own, for a comparison with `engine`. Waits for the compilation."""
        return Detector(self.entry(model).place(), rect=self._config.rect, conf=self._config.conf,
                        iou=self._config.iou, agnostic=True, threads=self._config.threads)  # fmt: skip

    def queues(self) -> dict[str, tuple[int, int]]:
        """Pictures that are worked on or wait, and how many may."""
        return {"requests": (self._places.inside, self._places.most)}

    # -- pictures -----------------------------------------------------------------------------------------------------

    def detect(self, content: bytes, how: Detecting, *, patience_s: float = 0.0) -> Detected:
        """See `Service.detect`."""
        with self._place(patience_s):
            return self._detect(content, how)

    def detect_batch(self, contents: Sequence[bytes], how: Detecting) -> list[Detected | Failed]:
        """See `Service.detect_batch`."""
        done: list[Detected | Failed] = []
        with self._place(0.0, pictures=len(contents)):
            for content in contents:
                try:
                    done.append(self._detect(content, how))
                except DataError as error:
                    done.append(Failed(error=str(error)))
        return done

    def detect_image(
        self, image: NDArray[np.uint8], how: Detecting, *, patience_s: float = 0.0
    ) -> tuple[Detections, dict[str, float]]:
        """See `Service.detect_image`."""
        with self._place(patience_s):
            started = time.perf_counter()
            found, timings = self._run(self.pool(how.model), image, how)
        timings["total"] = (time.perf_counter() - started) * 1e3
        self._metrics.observe(timings)
        self._metrics.count(requests=1)
        return found, timings

    def _detect(self, content: bytes, how: Detecting) -> Detected:
        started = time.perf_counter()
        pool = self.pool(how.model)
        picture = decode_for(content, self._config.max_pixels, pool.spec.imgsz)
        decoded_ms = (time.perf_counter() - started) * 1e3
        found, timings = self._run(pool, picture.image, how)
        timings = {"decode": decoded_ms, **timings, "total": (time.perf_counter() - started) * 1e3}
        self._metrics.observe(timings)
        self._metrics.count(requests=1)
        return Detected(
            model=pool.id, width=picture.width, height=picture.height,
            detections=tuple(Box.model_validate(row) for row in picture.restored(found).to_records(pool.names)),
            timings_ms={name: round(value, 3) for name, value in timings.items()},
        )  # fmt: skip

    def _run(self, pool: Pool, image: NDArray[np.uint8], how: Detecting) -> tuple[Detections, dict[str, float]]:
        classes = None if how.classes is None else class_indices(how.classes, pool.names)
        asked = time.perf_counter()
        with pool.detector(alone=self._places.inside == 1) as detector:
            got = time.perf_counter()
            detector.conf = self._config.conf if how.conf is None else how.conf
            detector.iou = self._config.iou if how.iou is None else how.iou
            detector.classes = classes
            found = detector(image)
            return found, {"wait": (got - asked) * 1e3, **detector.timings}

    def _places_for(self, working: int) -> Places:
        return Places(working, working * self._config.waiting, self._config.patience)

    @contextmanager
    def _place(self, patience_s: float, *, pictures: int = 1) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._places.take(patience_s, pictures=pictures))
            except Busy:
                self._metrics.count(rejected=1)
                raise
            yield
