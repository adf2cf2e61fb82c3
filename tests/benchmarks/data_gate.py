"""What the data gate costs: in full, again after adding 1 %, and beside cleanvision.

    .venv/bin/python tests/benchmarks/data_gate.py                # 1,000 and 10,000 pictures
    .venv/bin/python tests/benchmarks/data_gate.py --sizes 100000 # about 6 GB of disk

Pictures are generated, all different, 500 x 375 pixels (the mean of ImageNet), so that what is
measured is decoding and checking and not a disk. Each run is a process of its own, as DVC starts
it, from its start to its end. Memory is that of the stage itself; its workers add a constant.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
CLASSES = 10
SIZE = 500, 375
CONSTANT = 500  # pictures: a re-run that small is start-up and report
CLEANVISION = """
import sys
from cleanvision import Imagelab
if __name__ == "__main__":
    Imagelab(data_path=sys.argv[1]).find_issues(verbose=False)
"""


@dataclass(frozen=True)
class Cost:
    """What a command cost.

    Attributes:
        wall: seconds.
        cpu: seconds of all its processes.
        rss: peak resident megabytes of its first process.
    """

    wall: float
    cpu: float
    rss: float


def make(path: Path, seed: int) -> None:
    """Write a JPEG like no other: soft shapes under noise, about 50 KB."""
    generator = np.random.default_rng(seed)
    shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    soft = np.asarray(shapes.resize(SIZE, Image.Resampling.BICUBIC), dtype=np.int16)
    noise = generator.integers(-10, 11, (*soft.shape[:2], 1), dtype=np.int16)
    Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    os.utime(path, (0, 0))  # as if it had been there for long


def fill(raw: Path, first: int, last: int) -> None:
    """Write the pictures numbered `first` up to `last`."""
    for label in range(CLASSES):
        (raw / f"class {label}").mkdir(parents=True, exist_ok=True)
    paths = [raw / f"class {i % CLASSES}" / f"{i:07}.jpg" for i in range(first, last)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(make, paths, range(first, last), chunksize=100))


def measure(command: list[str], folder: Path) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        cpu: dict[int, float] = {}
        rss = 0.0
        while process.poll() is None:
            rss = max(rss, *samples(process, cpu))
            time.sleep(0.02)
        wall = time.perf_counter() - began
        if process.returncode:
            output.seek(0)
            raise RuntimeError(output.read().decode()[-2000:])
    return Cost(wall, sum(cpu.values()), rss / 1e6)


def samples(process: psutil.Process, cpu: dict[int, float]) -> Iterator[float]:
    """Note the seconds of every process of the tree, and yield the memory of the first."""
    yield 0.0
    with suppress(psutil.Error):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                times = each.cpu_times()
                cpu[each.pid] = times.user + times.system
        yield float(process.memory_info().rss)


def gate(project: Path) -> Cost:
    """Run the stage."""
    return measure([sys.executable, "-m", "tasks.validate"], project)


def new_project(folder: Path, pictures: int) -> Path:
    """Make a project with pictures and the shipped params.yaml."""
    fill(folder / "data/raw", 0, pictures)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["validate"]["min_per_class_and_split"] = 0  # small sizes are small on purpose
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


def install_cleanvision(folder: Path) -> list[str]:
    """Return the command that runs cleanvision, in an environment of its own."""
    python, program = folder / "venv/bin/python", folder / "program.py"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", str(folder / "venv")], check=True)
    subprocess.run(
        [*uv, "pip", "install", "-q", "--python", str(python), "cleanvision"], check=True
    )
    program.write_text(CLEANVISION, encoding="utf-8")
    return [str(python), str(program), "data/raw"]


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")


def report(sizes: list[int], constant: Cost, rows: dict[int, dict[str, Cost]]) -> None:
    """Print the table."""
    cores = len(os.sched_getaffinity(0))
    print(
        f"\n{processor()}, {cores} cores; start-up, workers and report of a "
        f"re-run: {constant.wall:.1f} s wall, {constant.cpu:.1f} s CPU\n"
    )
    print("| pictures | run | wall s | CPU s | pictures/s | per core | peak RSS MB |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for size in sizes:
        for name, cost in rows[size].items():
            count = f"{size:,}" if name != "gate, 1 % added" else f"{size // 100:,} + {size:,}"
            rate = size / cost.wall
            print(
                f"| {count} | {name} | {cost.wall:.1f} | {cost.cpu:.1f} | {rate:,.0f} | "
                f"{rate / cores:,.0f} | {cost.rss:,.0f} |"
            )
    for size in sizes:
        full, again = rows[size]["gate, full"], rows[size]["gate, 1 % added"]
        wall = (again.wall - constant.wall) / (full.wall - constant.wall)
        cpu = (again.cpu - constant.cpu) / (full.cpu - constant.cpu)
        print(
            f"\n{size:,}: a re-run after adding 1 % costs {wall:.1%} of the full run's wall time "
            f"and {cpu:.1%} of its CPU time, above the constant"
        )
    for small, large in pairwise(sizes):
        more = rows[large]["gate, full"].rss - rows[small]["gate, full"].rss
        print(f"\n{small:,} to {large:,}: {more * 1e3 / (large - small):.2f} KB RSS a picture")


def main() -> None:
    """Measure each size and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000])
    parser.add_argument("--alone", action="store_true", help="without cleanvision")
    parser.add_argument("--folder", help="where the pictures go (a temporary folder)")
    arguments = parser.parse_args()
    sizes = sorted(arguments.sizes)
    rows: dict[int, dict[str, Cost]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        other = None if arguments.alone else install_cleanvision(folder)
        smallest = new_project(folder / "constant", CONSTANT)
        gate(smallest)
        fill(smallest / "data/raw", CONSTANT, CONSTANT + 2)
        constant = gate(smallest)
        for size in sizes:
            project = new_project(folder / str(size), size)
            rows[size] = {"gate, full": gate(project), "gate, nothing new": gate(project)}
            if other:
                rows[size]["cleanvision"] = measure(other, project)
            fill(project / "data/raw", size, size + size // 100)
            rows[size]["gate, 1 % added"] = gate(project)
    report(sizes, constant, rows)


if __name__ == "__main__":
    main()
