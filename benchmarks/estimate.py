"""What unlearning takes on paper: memory, communication and time for a ViT-L/16 and a decoder of 7B parameters on 8 and 64 GPUs.

Run: python benchmarks/estimate.py. Prints the assumptions and the table of docs/scaling.md. Nothing is run: operations and bytes are
counted from the layers' sizes, and divided by the rates below. Left out are attention's own products, normalisation, activations, loading
data, and sharded weights that are gathered while collecting.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgu_lightning.distributed import share_out
from pgu_lightning.statistics import LayerInfo, gram_bytes

FP32, BF16 = 40e12, 400e12  # operations a second: of an H100 about 60% and 40%
DEVICE_MEMORY = 2000e9  # bytes a second between a GPU and its memory
LINKS = {8: 200e9, 64: 40e9}  # bytes a second of each GPU: to the others of its machine; to other machines
EIGH = 16 / 4608**3  # seconds by dimension^3: float64 on two CPU cores
MACHINE = 8  # GPUs, and processes
CHUNK = 16_384  # rows of one product
PASSES = 9  # over a batch in a step, as forward passes: forget 1 + 2 (backward) + 1 (parabola), validation likewise and 1 for the original
GATHERS = 7  # of sharded weights in a step: for each of five forward passes and two backward passes
ASSUMED = (
    f"{FP32 / 1e12:.0f} TFLOP/s in float32 (collecting, filtering) and {BF16 / 1e12:.0f} in bfloat16 (steps, bf16-mixed); "
    f"{DEVICE_MEMORY / 1e9:.0f} GB/s device memory; {LINKS[8] / 1e9:.0f} GB/s a GPU within a machine of {MACHINE} GPUs, "
    f"{LINKS[64] / 1e9:.0f} GB/s between machines, ring all-reduce; eigh of 4,608 dimensions in {EIGH * 4608**3:.0f} s on two CPU cores, "
    "growing with the third power; float32 weights. ViT-L/16: 1,281,167 images of 224 x 224 pixels, steps of 512. 7B: a decoder with "
    "Llama's sizes, 100,000 sequences of 2,048 tokens, steps of 64."
)


@dataclass(frozen=True)
class Layer:
    """So many linear layers of one size.

    Attributes:
        name: Of one of them.
        copies: How many there are.
        rows: What one sample sends into each.
        dim: Columns of a row.
        out: Outputs.
    """

    name: str
    copies: int
    rows: int
    dim: int
    out: int

    @property
    def weights(self) -> int:
        """Of all copies."""
        return self.copies * self.dim * self.out

    @property
    def forward(self) -> float:
        """Floating-point operations a sample, of all copies."""
        return 2.0 * self.copies * self.rows * self.dim * self.out


@dataclass(frozen=True)
class Case:
    """A model, and which of its layers are protected.

    Attributes:
        title: For the table.
        layers: All of them.
        protected: Some of them, or fewer copies.
        samples: To collect over.
        batch: Samples of an unlearning step, over all processes.
    """

    title: str
    layers: tuple[Layer, ...]
    protected: tuple[Layer, ...]
    samples: int
    batch: int


def vit() -> Case:
    """ViT-L/16 at 224 pixels: 24 blocks, 197 tokens; one layer makes queries, keys and values."""
    block = [("qkv", 1024, 3072), ("proj", 1024, 1024), ("fc1", 1024, 4096), ("fc2", 4096, 1024)]
    layers = (
        Layer("patches", 1, 196, 3 * 16 * 16, 1024),
        *(Layer(name, 24, 197, dim, out) for name, dim, out in block),
        Layer("head", 1, 1, 1024, 1000),
    )
    return Case("ViT-L/16", layers, layers, samples=1_281_167, batch=512)


def decoder(blocks: int | None) -> Case:
    """Llama's sizes at 7B: 32 blocks, 2,048 tokens; every layer, or the MLPs of the last ``blocks``."""
    attention = tuple(Layer(name, 32, 2048, 4096, 4096) for name in "qkvo")
    mlp = ("gate", 4096, 11008), ("up", 4096, 11008), ("down", 11008, 4096)
    layers = (*attention, *(Layer(name, 32, 2048, dim, out) for name, dim, out in mlp), Layer("head", 1, 2048, 4096, 32_000))
    chosen = layers if blocks is None else tuple(Layer(name, blocks, 2048, dim, out) for name, dim, out in mlp)
    which = "every layer" if blocks is None else f"the MLPs of {blocks} blocks"
    return Case(f"7B, {which}", layers, chosen, samples=100_000, batch=64)


def figures(case: Case, processes: int) -> dict[str, str]:
    """What stands in a column of the table."""
    infos = [
        LayerInfo(f"{one.name}.{copy}", "Linear", f"{one.name}.{copy}", (1, one.out, one.dim))
        for one in case.protected
        for copy in range(one.copies)
    ]
    sizes = gram_bytes(infos)
    grams, link = sum(sizes.values()), LINKS[processes]
    ring = 2 * (processes - 1) / processes
    weights, moving = (4 * sum(one.weights for one in some) for some in (case.layers, case.protected))

    forward = sum(one.forward for one in case.layers)
    products = sum(one.forward * one.dim / one.out for one in case.protected)  # of rows: 2 N d^2
    # A chunk's float32 product is written and read, its float64 copy too, and the sum is read and written.
    traffic = sum(one.copies * one.rows / CHUNK * 40 * one.dim**2 for one in case.protected)
    collect = case.samples / processes * ((forward + products) / FP32 + traffic / DEVICE_MEMORY)

    costs = [info.shape[2] ** 3 for info in infos]
    decompose = EIGH * max(sum(costs[task] for task in share) for share in share_out(costs, processes))

    # The soft filter, which gives the interference too: a product with a dim x dim matrix, of the rows that a process holds.
    filtering = sum(2.0 * one.weights * one.dim for one in case.protected) / FP32
    step = PASSES * case.batch / processes * forward / BF16
    received = (processes - 1) / processes * (GATHERS * weights + moving)
    state = weights + 5 * moving  # gradient, original, change, step, best change
    return {
        "Gram matrices, float64": _size(grams),
        "the largest of them": _size(max(sizes.values())),
        "device memory of a process, collecting": _size(weights + grams + 3 * max(sizes.values())),  # and what a batch needs
        "device memory of a process, unlearning, DDP": _size(state + grams),
        "device memory of a process, unlearning, FSDP2": _size(state / processes + grams),
        "CPU memory of a machine, unlearning": _size(4 * grams * MACHINE),
        "collecting: time": _time(collect),
        "collecting: sent by each process, once": _size(ring * grams),
        "collecting: time of that": _time(ring * grams / link),
        "decomposing, shared out: time": _time(decompose),
        "decomposing: received by each process": _size(grams),
        "a step: passes over the batch": _time(step),
        "a step: filter and interference, DDP": _time(filtering),
        "a step: filter and interference, FSDP2": _time(filtering / processes),
        "a step: sent by each process, DDP": _size(ring * moving),
        "a step: time of that, DDP": _time(ring * moving / link),
        "a step: received by each process, FSDP2": _size(received),
        "a step: time of that, FSDP2": _time(received / link),
    }


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min" if seconds < 18_000 else f"{seconds / 3600:.1f} h"


def table() -> str:
    """In Markdown: a row a figure, a column a model and a number of GPUs."""
    columns = {f"{case.title}, {count} GPUs": figures(case, count) for case in (vit(), decoder(None), decoder(8)) for count in LINKS}
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    rows = next(iter(columns.values()))
    return "\n".join([*lines, *(f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |" for row in rows)])


if __name__ == "__main__":
    print(f"Assumed: {ASSUMED}\n\n{table()}")
