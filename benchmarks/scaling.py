"""Time of collecting and of an unlearning step against the number of processes and the width of a model.

Run: python benchmarks/scaling.py [--json FILE] [--repeats 7] [--widths 256 512 1024]. Each process is pinned to a core of its own and has
one thread. Groups of 1, 2 and 4 processes (as many as there are cores) do the same work in turns; ratios to one process are taken within a
turn, and the median of the turns is reported, so that other work on the machine does less harm. Processor time is what the busiest process
computed: other work hardly changes it, but it leaves out what processes wait for each other.

Collecting: batches of the same size in each process, as a loader's are. Unlearning: steps with batches of the same size over all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.multiprocessing import get_context
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import RetainSpace, collect, distributed
from pgu_lightning.evaluation import Scores
from pgu_lightning.passes import score
from pgu_lightning.projection import Projector, Soft, Spectrum, UpdateGuard
from pgu_lightning.settings import Settings
from pgu_lightning.unlearner import Unlearner

LAYERS, CLASSES = 3, 10
SAMPLES, BATCH, STEPS = 8192, 512, 4
WORK = {"collecting": SAMPLES, "unlearning step": BATCH * STEPS}
"""What is timed, and how many samples go through it."""


class Net(nn.Sequential):
    """Linear layers of one width, so that nearly all time is matrix products."""

    def __init__(self, width: int) -> None:
        super().__init__(*(part for _ in range(LAYERS) for part in (nn.Linear(width, width), nn.ReLU())), nn.Linear(width, CLASSES))


class Worker:
    """One of several processes: the same model and data in each, which takes its share of the samples."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self._model = Net(width)
        y = torch.arange(SAMPLES) % CLASSES
        self._data = TensorDataset(torch.randn(SAMPLES, width) + nn.functional.one_hot(y, width), y)
        space = self.collecting()
        layers = {name: self._model.get_submodule(name) for name in space.protected}
        spectra = Spectrum.of_all(space.grams, dict.fromkeys(space.grams, Soft()))
        guard = UpdateGuard(
            layers,
            {name: Projector(spectrum, Soft(), layers[name].weight) for name, spectrum in spectra.items()},
            {name: spectrum.matrix for name, spectrum in spectra.items()},
        )
        self._unlearner = Unlearner(Settings(anchor=1.0), "class", guard, lambda batch: (self._model(batch[0]), batch[1]))
        scores: Scores = score(self._model, DataLoader(self._data, BATCH))[0]
        self._unlearner.start(scores, scores, CLASSES)
        self._optimizer = torch.optim.SGD(guard.weights.values(), lr=1.0)

    def collecting(self) -> RetainSpace:
        """One pass over this process's share of all samples, and the sum over the processes."""
        return collect(self._model, DataLoader(self._data, BATCH))

    def step(self, number: int) -> None:
        """An unlearning step on this process's share of a batch; gradients are averaged as DDP does."""
        batch, other = (self._share(BATCH * place) for place in (number, number + STEPS))
        self._optimizer.zero_grad()
        self._unlearner.loss(batch, other, torch.arange(len(batch[1]))).backward()
        for weight in self._unlearner.guard.weights.values():
            weight.grad = distributed.mean_gradient(weight)
        self._unlearner.check_gradients(self._unlearner.guard.weights.values())
        self._optimizer.step()
        self._unlearner.after_step()

    def _share(self, start: int) -> tuple[Tensor, Tensor]:
        x, y = self._data.tensors
        own = slice(start + distributed.rank(), start + BATCH, distributed.world())
        return x[own], y[own]

    def run(self, work: str) -> None:
        """Do what ``WORK`` names, once."""
        if work == "collecting":
            self.collecting()
        else:
            for number in range(STEPS):
                self.step(number)


def serve(connection: Connection, core: int, rank: int, world: int, port: int, width: int) -> None:
    """In a process of its own: do what is asked for, and answer with seconds and processor seconds, until asked for nothing."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    worker = Worker(width)
    while work := connection.recv():
        dist.barrier()
        started, computed = time.perf_counter(), time.process_time()
        worker.run(work)
        connection.send((time.perf_counter() - started, time.process_time() - computed))
    dist.destroy_process_group()


class Group:
    """Processes that wait for work."""

    def __init__(self, processes: int, width: int) -> None:
        context, cores = get_context("spawn"), sorted(os.sched_getaffinity(0))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._ends, self._processes = [], []
        for rank in range(processes):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, cores[rank], rank, processes, port, width), daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)

    def close(self) -> None:
        """Let the processes end."""
        for end in self._ends:
            end.send("")
        for process in self._processes:
            process.join()

    def seconds(self, work: str) -> tuple[float, float]:
        """Seconds and processor seconds of the processes that take most."""
        for end in self._ends:
            end.send(work)
        walls, computed = zip(*(end.recv() for end in self._ends), strict=True)
        return max(walls), max(computed)


def measure(
    width: int, counts: list[int], repeats: int, note: Callable[[str], object] = lambda text: None
) -> list[dict[str, str | int | float]]:
    """One row for each kind of work and number of processes, at one width."""
    groups = {count: Group(count, width) for count in counts}
    rows: list[dict[str, str | int | float]] = []
    for work, samples in WORK.items():
        turns: list[dict[int, tuple[float, float]]] = []
        for turn in range(repeats + 1):
            note(f"width {width}, {work}, turn {turn} of {repeats}")
            turns.append({count: group.seconds(work) for count, group in groups.items()})
        del turns[0]  # the first does not count
        for count in counts:
            ratios = [statistics.median(turn[count][kind] / turn[1][kind] for turn in turns) for kind in (0, 1)]
            ms = 1e3 * statistics.median(turn[count][0] for turn in turns) / samples
            found = {"ms_per_sample": ms, "ratio": ratios[0], "processor_ratio": ratios[1]}
            rows.append({"work": work, "width": width, "processes": count, **found})
    for group in groups.values():
        group.close()
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024], help="of the linear layers")
    options = parser.parse_args(arguments)
    counts = [count for count in (1, 2, 4) if count <= len(os.sched_getaffinity(0))]
    console = Console()
    rows = []
    with console.status("") as status:
        for width in options.widths:
            rows += measure(width, counts, options.repeats, status.update)
    table = Table("work", "width", "processes", "ms a sample", "time against one process", "processor time")
    for row in rows:
        table.add_row(
            row["work"],
            *(str(row[name]) for name in ("width", "processes")),
            f"{row['ms_per_sample']:.3f}",
            *(f"{row[name]:.2f}" for name in ("ratio", "processor_ratio")),
        )
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
