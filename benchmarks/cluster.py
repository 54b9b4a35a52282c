"""How a batch on n machines behaves: a small simulation, calibrated against 1 and 2 workers on one machine.

    python benchmarks/cluster.py --one 22.4 --two 43.1

Parts are handed out by one driver, which is busy for a moment with each; a worker reads a part's pictures over a shared
link, works, and asks for the next. What two workers on one machine cost each other (memory, clock speed) is taken from
the two measured rates, and goes on growing in the same way with more workers on that machine. Machines may die: their
parts in work are done again by others. Everything else is assumed to be ideal, so the figures are upper bounds.
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        machines, workers: how many, and workers on each.
        picture_s: of one worker alone, for a picture.
        slowdown: how much longer a picture takes for each further worker on its machine.
        chunk: pictures in a part.
        driver_s: that the driver is busy with a part.
        picture_bytes, link_bytes_s: size of a picture, and what the storage gives to all machines together.
        deaths_per_hour: of one machine.
    """

    machines: int
    workers: int
    picture_s: float
    slowdown: float
    chunk: int = 1000
    driver_s: float = 0.005
    picture_bytes: float = 0.0
    link_bytes_s: float = float("inf")
    deaths_per_hour: float = 0.0


def simulate(cluster: Cluster, pictures: int, *, seed: int = 0) -> tuple[float, int]:
    """Seconds until every picture is done, and how many had to be done again."""
    chance = random.Random(seed)
    todo, again = -(-pictures // cluster.chunk), 0
    busy_s = cluster.picture_s * (1 + cluster.slowdown * (cluster.workers - 1)) * cluster.chunk
    read_s = cluster.picture_bytes * cluster.chunk / cluster.link_bytes_s
    rate = cluster.deaths_per_hour / 3600
    dies = [chance.expovariate(rate) if rate else float("inf") for _ in range(cluster.machines)]
    free = [(0.0, m) for m in range(cluster.machines) for _ in range(cluster.workers)]
    heapq.heapify(free)
    driver_free = link_free = end = 0.0
    while todo:
        if not free:
            raise RuntimeError("every machine died before the work was done")
        at, machine = heapq.heappop(free)
        if at >= dies[machine]:
            continue
        begun = max(at, driver_free)
        driver_free = begun + cluster.driver_s
        link_free = max(begun, link_free) + read_s  # read ahead: it delays only where the link is full
        done = max(begun + busy_s, link_free)
        if done > dies[machine]:
            again += cluster.chunk  # seen by the driver, which gives the part to another
            continue
        todo -= 1
        end = max(end, done)
        heapq.heappush(free, (done, machine))
    return end, again


def main() -> None:
    """Print a table over numbers of machines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=float, required=True, help="measured pictures/s of one worker")
    parser.add_argument("--two", type=float, required=True, help="measured pictures/s of two workers on one machine")
    parser.add_argument("--workers", type=int, default=2, help="workers on each machine")
    parser.add_argument("--chunk", type=int, default=1000)
    parser.add_argument("--driver-ms", type=float, default=5.0, help="the driver's time for a part")
    parser.add_argument("--picture-kb", type=float, default=160.0)
    parser.add_argument("--link-mb-s", type=float, default=1250.0, help="what the storage gives to all together")
    parser.add_argument("--deaths-per-hour", type=float, default=0.01)
    parser.add_argument("--pictures", type=int, default=10_000_000)
    options = parser.parse_args()
    slowdown = max(0.0, 2 * options.one / options.two - 1)
    print(f"a second worker makes each picture {slowdown:.1%} slower\n")
    print("| machines | pictures/s | of ideal | pictures/day | hours for the batch | done again |")
    print("|---:|---:|---:|---:|---:|---:|")
    for machines in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        cluster = Cluster(machines, options.workers, 1 / options.one, slowdown, options.chunk, options.driver_ms / 1e3,
                          options.picture_kb * 1e3, options.link_mb_s * 1e6, options.deaths_per_hour)  # fmt: skip
        seconds, again = simulate(cluster, options.pictures)
        ideal = machines * options.workers / (1 / options.one * (1 + slowdown * (options.workers - 1)))
        rate = options.pictures / seconds
        told = f"{rate:,.0f} | {rate / ideal:.0%} | {rate * 86400:,.0f} | {seconds / 3600:.2f} | {again:,}"
        print(f"| {machines} | {told} |")


if __name__ == "__main__":
    main()
