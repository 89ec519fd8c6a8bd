"""The reference methods that read the retained data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.utils.data import TensorDataset

from pgu_lightning import ForgetRequest
from pgu_lightning.methods import Finetune, Job, NegGradPlus
from tests.app.test_experiment import report_of
from tests.helpers.toys import CLASSES, Data, Module, accuracy, trainer


class Linear(Module):
    """Softmax regression with plain gradient steps."""

    def __init__(self) -> None:
        super().__init__(lr=0.1)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def job_of(module: Module, batch_size: int, made: list | None = None) -> Job:
    data = Data(batch_size)
    data.setup()
    request = ForgetRequest(classes=[2])

    def make(**given):
        (made if made is not None else []).append(fit := trainer(**given))
        return fit

    return Job(module, type(module), data, request, request.split(data.train), None, make, 8, 0)


def step_of(weight, bias, x, y):
    """Gradients of the mean cross entropy of softmax regression."""
    error = softmax(x @ weight.T + bias, axis=1) - np.eye(CLASSES)[y]
    return error.T @ x / len(x), error.mean(0)


@pytest.mark.parametrize("alpha", [0.9, 0.5, 1.0])
def test_a_step_of_neggrad_plus(alpha):
    job = job_of(Linear(), batch_size=500)  # one batch each, so one step
    layer = job.module.net[1]
    weight, bias = (value.detach().double().numpy().copy() for value in (layer.weight, layer.bias))
    x, y = (tensor.numpy() for tensor in job.data.train.tensors)
    x = x.reshape(len(x), -1).astype(np.float64)
    gone = y == 2
    retain, forget = step_of(weight, bias, x[~gone], y[~gone]), step_of(weight, bias, x[gone], y[gone])
    module, report = NegGradPlus("neggrad_plus", alpha, epochs=1).unlearn(job)
    assert module is job.module
    assert report is None
    for found, start, up, down in zip((layer.weight, layer.bias), (weight, bias), retain, forget, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), start - 0.1 * (alpha * up - (1 - alpha) * down), atol=1e-6)


def test_an_epoch_of_neggrad_plus_is_a_pass_over_the_retained_samples():
    made = []
    NegGradPlus("neggrad_plus", 0.9, epochs=2).unlearn(job_of(Linear(), 32, made))
    assert made[0].global_step == 2 * -(-120 // 32)


@pytest.mark.parametrize("alpha", [0, -1, 1.5])
def test_the_weight_lies_between_0_and_1(alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\]"):
        NegGradPlus("neggrad_plus", alpha, 1)


def test_fine_tuning_reads_no_sample_of_the_forget_set():
    job = job_of(Module(), 32)
    x, y = job.data.train.tensors
    poisoned = TensorDataset(torch.where((y == 2)[:, None, None, None], torch.nan, x), y)
    job.data.train = poisoned
    module, report = Finetune("finetune", epochs=12).unlearn(dataclasses.replace(job, split=job.request.split(poisoned)))
    assert module is job.module
    assert report is None
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    clean = TensorDataset(x, y)
    assert accuracy(module, clean, y != 2) > 0.9
    assert accuracy(module, clean, y == 2) == 0


@pytest.mark.parametrize("method", ["finetune", "neggrad_plus"])
def test_digits(method, tmp_path):
    report, _ = report_of(tmp_path, "run", f"method={method}", "reference=false", "model.epochs=8")
    assert report.method.name == method
    assert report.method.uses_retain_data
    assert report.models["original"]["forget_accuracy"] > 0.95
    assert report.models["unlearned"]["forget_accuracy"] < 0.1
    assert report.models["unlearned"]["retain_accuracy"] > 0.9
