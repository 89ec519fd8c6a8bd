"""What the statistics take is known before they are collected, and what does not fit is refused or put elsewhere."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback, collect, passes
from pgu_lightning.projection import Hard, Projector, Spectrum
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import Collector, Gram, check_room, gram_bytes, memory, offloaded, survey
from tests.helpers.toys import Module, blobs, network, trainer


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.conv = nn.Conv1d(4, 6, 3, groups=2)
        self.back = nn.ConvTranspose1d(6, 4, 2)
        self.out = nn.Linear(4, 3)

    def forward(self, tokens):
        x = self.words(tokens)
        x = self.attention(x, x, x)[0].mT
        return self.out(self.back(self.conv(x)).mean(-1))


@pytest.mark.parametrize(
    ("model", "data"),
    [(network(), blobs(8)), (Words(), TensorDataset(torch.randint(9, (8, 5)), torch.arange(8) % 3))],
    ids=["images", "words"],
)
def test_as_many_bytes_as_are_then_collected(model, data):
    space = collect(model, DataLoader(data, 4))
    assert gram_bytes(survey(model)) == {key: gram.matrix.nbytes for key, gram in space.grams.items()}


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_fits_and_nothing_that_fits_goes(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {str(key): int(size) for key, size in enumerate(torch.randint(1, 50, (8,), generator=generator))}
    free = int(torch.randint(400, (), generator=generator))
    away = offloaded(sizes, free)
    left = free - 3 * max(sizes.values()) - sum(size for key, size in sizes.items() if key not in away)
    assert left >= 0 or away == sizes.keys()
    assert all(sizes[key] > left for key in away)


def test_offloaded_layers_are_named_and_their_statistics_are_the_same(monkeypatch, caplog):
    expected = collect(model := network(), loader := DataLoader(blobs(8), 4))
    sizes = gram_bytes(survey(model))
    largest = max(sizes, key=sizes.get)
    monkeypatch.setattr(passes, "free_on", lambda device: 4 * sizes[largest] - 1)
    found = collect(model, loader)
    assert f"{largest} are summed on the CPU" in caplog.text
    caplog.clear()
    on_cpu = collect(model, loader, place="cpu")
    collect(model, loader, place="device")
    assert not caplog.text
    for key, gram in expected.grams.items():
        assert torch.equal(found.grams[key].matrix, gram.matrix)
        assert torch.equal(on_cpu.grams[key].matrix, gram.matrix)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_matrix_stays_on_a_gpu():
    model, data = nn.Linear(2048, 8, device="cuda"), DataLoader(TensorDataset(torch.randn(64, 2048), torch.arange(64) % 8), 32)
    held = []
    model.register_forward_hook(lambda *_: held.append(torch.cuda.memory_allocated()))
    for place in ("device", "cpu"):
        space = collect(nn.Sequential(model), data, place=place)
        assert space.grams["0"].matrix.device.type == "cpu"
    assert held[0] - held[-1] > 0.9 * space.grams["0"].matrix.nbytes


class Unread(TensorDataset):
    def __getitem__(self, index):
        pytest.fail("a sample was read")


def memory_of(monkeypatch, gigabytes):
    monkeypatch.setattr(memory, "_memory", lambda: int(gigabytes * 1e9))


def test_too_large_is_refused_before_a_sample_is_read(monkeypatch):
    model = nn.Sequential(nn.Linear(30, 500), nn.Linear(500, 4))  # 7,200 and 2,000,000 bytes
    memory_of(monkeypatch, 0.002)
    with pytest.raises(ValueError, match=r"need 0.0 GB, of these 0.0 GB for 1\. 1 process.*1 time.*layers="):
        collect(model, DataLoader(Unread(torch.zeros(5, 30))))
    collect(model, DataLoader(TensorDataset(torch.zeros(5, 30), torch.zeros(5))), layers=["0"])


def test_every_process_of_a_machine_counts_and_unlearning_takes_copies(monkeypatch):
    layers = survey(nn.Linear(1000, 4))  # 8 MB
    memory_of(monkeypatch, 0.031)
    check_room(layers, processes=3)
    for options in ({"processes": 4}, {"unlearns": True}):
        with pytest.raises(ValueError, match="fewer processes a machine"):
            check_room(layers, **options)


@pytest.mark.parametrize("request_", [None, ForgetRequest(classes=[1])], ids=["learning", "both"])
def test_a_fit_is_refused_before_it_trains(monkeypatch, request_):
    module = Module()
    memory_of(monkeypatch, 1e-6)
    callback = PGUCallback(request_, switch_at_epoch=1 if request_ else None)
    with pytest.raises(ValueError, match=r"The statistics need"):
        trainer(2, [callback]).fit(module, DataLoader(blobs(16), 8))
    assert module.steps == 0


def test_unlearning_takes_what_its_statistics_take_whatever_the_model_has(monkeypatch):
    module, loader = Module(), DataLoader(blobs(40), 8)
    head, everything = (collect(module, loader, layers=layers) for layers in (["net.7"], None))
    memory_of(monkeypatch, 10e-6)  # the head has 16 inputs: 2 kB, four times

    def fit(space):
        trainer(1, [PGUCallback(ForgetRequest(classes=[1]), retain_space=space)]).fit(module, loader)

    fit(head)
    with pytest.raises(ValueError, match=r"for net\.5\. 1 process.*4 time"):
        fit(everything)


@pytest.mark.parametrize("place", ["cpu", None])
def test_the_place_is_a_setting(monkeypatch, place):
    asked = []
    monkeypatch.setattr(passes, "_on_cpu", lambda model, layers, place: asked.append(place) or frozenset())
    settings = Settings(gram_place=place)
    L.seed_everything(0, verbose=False)
    learn = PGUCallback(settings=settings)
    trainer(1, [learn]).fit(module := Module(), DataLoader(blobs(40), 8))
    forget = PGUCallback(ForgetRequest(classes=[1]), retain_space=learn.space, settings=settings)
    trainer(1, [forget]).fit(module, DataLoader(blobs(40), 8))
    trainer(2, [PGUCallback(ForgetRequest(classes=[1]), switch_at_epoch=1, settings=settings)]).fit(Module(), DataLoader(blobs(40), 8))
    assert asked == [place] * 3
    with pytest.raises(ValueError, match='"device", "cpu" or None'):
        Settings(gram_place="gpu")


def test_sums_in_float32_would_take_rounding_for_data():
    """After nine tenths of 100,000 rows in 128 of 256 dimensions were subtracted: why there is no choice of the type."""
    rows = torch.randn(100_000, 128) @ torch.randn(128, 256)
    model = nn.Sequential(nn.Linear(256, 1))

    def collected(rows):
        with Collector(model, survey(model)) as collector, torch.no_grad():
            for batch in rows.split(500):
                model(batch)
        return collector.result()[0]["0"]

    def in_float32(rows):
        return Gram(sum(batch.T @ batch for batch in rows.split(500)).double()[None], len(rows))

    ranks = [Projector(Spectrum.of(sums(rows) - sums(rows[:90_000])), Hard(1.0)).rank for sums in (collected, in_float32)]
    assert ranks[0] == 128
    assert ranks[1] > 140
