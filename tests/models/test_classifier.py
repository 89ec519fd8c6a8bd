import logging
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning.models import MLP, Classifier


def trainer(**arguments) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **arguments,
    )


def blobs(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    centers = torch.tensor([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    return TensorDataset((centers[labels] + torch.randn(count, 4, generator=generator)).view(-1, 1, 2, 2), labels)


def classifier(epochs: int = 4) -> Classifier:
    torch.manual_seed(0)
    return Classifier(MLP((1, 2, 2), 3, hidden=(8,)), partial(torch.optim.SGD, lr=0.2, momentum=0.9), epochs)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_means_over_samples(stage):
    """Batches of 16, 16 and 9: a mean of batch means would be another number."""
    module, data = classifier(), blobs(41, seed=1)
    loader = DataLoader(data, batch_size=16)
    run = trainer()
    measured = (run.validate if stage == "val" else run.test)(module, loader, verbose=False)[0]
    images, labels = data.tensors
    with torch.no_grad():
        logits = module(images).double().numpy()
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert measured == pytest.approx(
        {f"{stage}/loss": log_loss(labels, probability), f"{stage}/accuracy": accuracy_score(labels, logits.argmax(axis=1))}, abs=1e-6
    )


def test_training_equals_a_plain_loop():
    module, data = classifier(epochs=4), blobs(40, seed=2)
    run = trainer(max_epochs=4)
    run.fit(module, DataLoader(data, batch_size=10), DataLoader(blobs(20, seed=3), batch_size=20))

    plain = classifier().network
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2, momentum=0.9)
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 + np.cos(np.pi * epoch / 4)) / 2
        losses = []
        for images, labels in DataLoader(data, batch_size=10):
            loss = torch.nn.functional.cross_entropy(plain(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    for (name, ours), theirs in zip(module.network.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name, atol=1e-5, rtol=1e-5)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(np.mean(losses), abs=1e-5)
    assert {"train/loss", "val/loss", "val/accuracy"} <= run.callback_metrics.keys()


def test_state_dict_is_the_networks_under_one_prefix():
    module = classifier()
    assert list(module.state_dict()) == [f"network.{name}" for name in module.network.state_dict()]
    assert module.epochs == 4
