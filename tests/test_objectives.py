"""Forget losses and the anchor against their formulas in float64; their gradients where a model is certain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.objectives import Calibrated, Depoison, GoneClasses, Known, Margin, Published, WrongLabels, anchor, places
from tests import oracles


def of_margins(margins, label=0):
    """Scores with these margins."""
    margins = torch.as_tensor(margins, dtype=torch.float32)
    return Scores(torch.nn.functional.softplus(-margins), margins, margins > 0, torch.full((len(margins),), label))


def calibrated(validation):
    objective = Calibrated()
    objective.prepare(Known(of_margins(validation)))
    return objective


def loss_of(objective, logits, target):
    """Of a batch that is the whole forget set."""
    objective.look(Scores.of(logits, target))
    return objective(logits, target, torch.arange(len(target)))


VALIDATION = np.random.default_rng(5).normal(2, 4, size=37).astype(np.float32)
OBJECTIVES = {
    "published": (Published(), oracles.published),
    "published, other numbers": (Published(0.2, 1.5), lambda z, y: oracles.published(z, y, 0.2, 1.5)),
    "depoison": (Depoison(), oracles.depoison),
    "depoison, other numbers": (Depoison(0.01, 2.0), lambda z, y: oracles.depoison(z, y, 0.01, 2.0)),
    "margin": (Margin(), oracles.softplus_margin),
    "margin, pushed": (Margin(threshold=-3.5), lambda z, y: oracles.softplus_margin(z, y, -3.5)),
    "calibrated": (calibrated(VALIDATION), lambda z, y: oracles.calibrated(z, y, VALIDATION)),
}
every_objective = pytest.mark.parametrize(("objective", "oracle"), OBJECTIVES.values(), ids=OBJECTIVES)


@every_objective
@given(st.integers(1, 30), st.integers(2, 7), st.sampled_from([0.01, 1, 10, 300]), st.integers(0, 999))
@settings(deadline=None, max_examples=25)
def test_the_formula(objective, oracle, rows, classes, scale, seed):
    generator = np.random.default_rng(seed)
    logits, target = (generator.normal(size=(rows, classes)) * scale).astype(np.float32), generator.integers(classes, size=rows)
    found = loss_of(objective, torch.from_numpy(logits), torch.from_numpy(target))
    assert found.shape == ()
    assert float(found) == pytest.approx(oracle(logits.astype(np.float64), target), rel=1e-4, abs=1e-6)


@every_objective
@pytest.mark.parametrize("certain", [20.0, 100.0, 1e4, 3e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_finite_where_the_model_is_certain(objective, oracle, certain, dtype):
    logits = torch.tensor([[certain, 0.0, 1.0], [0.0, certain, -certain]], dtype=dtype, requires_grad=True)
    loss = loss_of(objective, logits, torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@every_objective
def test_half_precision_is_computed_in_float32(objective, oracle):
    logits, target = (torch.randn(40, 5) * 3).bfloat16(), torch.arange(40) % 5
    loss = loss_of(objective, logits, target)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(oracle(logits.double().numpy(), target.numpy()), rel=1e-5)


@every_objective
def test_a_step_down_the_gradient_makes_the_labels_less_likely(objective, oracle):
    """From answers that are about right: what forgetting means. For the calibrated loss: from margins above the validation's."""
    target = torch.arange(40) % 4
    logits = (torch.randn(40, 4) + 12 * torch.eye(4)[target] * (type(objective) is Calibrated) + torch.eye(4)[target]).requires_grad_()
    loss_of(objective, logits, target).backward()
    moved = logits.detach() - logits.grad
    before, after = (oracles.margins(z.detach().double().numpy(), target.numpy()).mean() for z in (logits, moved))
    assert after < before


@pytest.mark.parametrize("margin", [20.0, 80.0])
def test_only_the_published_gradient_vanishes_where_the_model_is_certain(margin):
    slopes = {}
    for name, objective in {"published": Published(entropy_weight=0), "margin": Margin(), "calibrated": calibrated([0.0])}.items():
        logits = torch.tensor([[margin, 0.0]], requires_grad=True)
        loss_of(objective, logits, torch.tensor([0])).backward()
        slopes[name] = float(logits.grad[0, 0])
    assert slopes["margin"] > 0.99
    assert slopes["calibrated"] > 0.99
    assert slopes["published"] < 1e-6


@pytest.mark.parametrize("objective", [Published(), Depoison(), Margin()])
def test_needs_no_validation_and_has_no_further_goal(objective):
    objective.prepare(Known(None))
    objective.look(of_margins([1.0]))
    assert objective.refine(of_margins([1.0]), None) is False


# Calibrated


def logits_of(margins):
    """Two classes, label 0: the margin is the difference of the logits."""
    return torch.stack([torch.as_tensor(margins, dtype=torch.float32), torch.zeros(len(margins))], 1), torch.zeros(
        len(margins), dtype=torch.int64
    )


@given(st.lists(st.sampled_from([-3.0, -1.0, 0.5, 0.5, 2.0, 7.25]), min_size=1, max_size=20), st.randoms())
@settings(deadline=None, max_examples=60)
def test_it_is_zero_where_the_margins_are_equal(validation, random):
    """In any order, and with ties."""
    own = validation.copy()
    random.shuffle(own)
    assert float(loss_of(calibrated(validation), *logits_of(own))) < 1e-10


def test_the_gradient_is_zero_at_the_fixed_point():
    logits, target = logits_of(VALIDATION)
    logits.requires_grad_()
    loss_of(calibrated(VALIDATION), logits, target).backward()
    assert logits.grad.abs().max() < 1e-6


def test_the_ranks_are_those_of_the_whole_forget_set():
    """However it is cut into batches, in whatever order they come."""
    own = np.random.default_rng(1).normal(size=20).astype(np.float32)
    objective = calibrated(VALIDATION)
    whole = float(loss_of(objective, *logits_of(own)))
    order = torch.randperm(20)
    parts = [float(objective(*logits_of(own[part]), part)) for part in order.split([7, 10, 3])]
    assert (7 * parts[0] + 10 * parts[1] + 3 * parts[2]) / 20 == pytest.approx(whole, rel=1e-5)


def test_a_goal_stands_until_the_forget_set_is_looked_at_again():
    objective = calibrated([0.0, 10.0])
    objective.look(of_margins([1.0, 2.0]))
    assert float(objective(*logits_of([10.0, 0.0]), torch.tensor([1, 0]))) < 1e-10  # sample 1 is the higher one: its goal is 10
    assert float(objective(*logits_of([10.0, 0.0]), torch.tensor([0, 1]))) == pytest.approx(9.5)
    objective.look(of_margins([2.0, 1.0]))
    assert float(objective(*logits_of([10.0, 0.0]), torch.tensor([0, 1]))) < 1e-10


def test_samples_of_several_labels_cannot_be_ranked():
    objective = calibrated(VALIDATION)
    objective.look(of_margins([1.0, 2.0]))
    with pytest.raises(ValueError, match="this batch has 6 labels for 2 samples: choose another objective"):
        objective(*logits_of([1.0] * 6), torch.arange(2))


@pytest.mark.parametrize("validation", [None, of_margins([])])
def test_calibrated_needs_validation(validation):
    with pytest.raises(ValueError, match=r"it needs validation data .* Give the trainer a validation loader, or choose another objective"):
        Calibrated().prepare(Known(validation))


def test_the_goal_is_the_original_models():
    """The validation margins of the beginning, whatever they become."""
    scores = of_margins(VALIDATION)
    objective = Calibrated()
    objective.prepare(Known(scores))
    before = float(loss_of(objective, *logits_of([1.0, 2.0])))
    scores.margin.add_(5)
    assert float(loss_of(objective, *logits_of([1.0, 2.0]))) == before


def test_the_places_are_those_of_a_gaussian_copula():
    """Against draws: of unseen samples coupled with trained ones of a given hardness, so many lie below each validation quantile."""
    hardness, coupling, rows = np.array([0.3, 0.55, 0.9]), 0.6, 400
    found = places(torch.tensor(hardness), rows, coupling).numpy()
    rng = np.random.default_rng(0)
    trained = norm.ppf(rng.choice(hardness, 400_000))
    unseen = norm.cdf(coupling * trained + np.sqrt(1 - coupling**2) * rng.normal(size=len(trained)))
    for row in (20, 100, 200, 300, 380):
        assert found[row] == pytest.approx((unseen < (row + 0.5) / rows).mean(), abs=4e-3)


def test_a_forget_set_like_the_training_data_is_held_against_validation_data_as_it_is():
    found = places((torch.arange(2000) + 0.5) / 2000, 500, 0.85)
    torch.testing.assert_close(found, (torch.arange(500) + 0.5) / 500, atol=4e-3, rtol=0)


@pytest.mark.parametrize(("training", "easier"), [((), False), (np.linspace(-9, 1, 200), True)], ids=["nothing known", "higher than most"])
def test_the_goals_of_an_easy_forget_set_are_higher(training, easier):
    validation, forget = of_margins(np.linspace(-3, 3, 300)), of_margins(np.linspace(0, 1, 40))
    plain, objective = Calibrated(coupling=0.0), Calibrated()
    for one in (plain, objective):
        one.prepare(Known(validation, training=tuple(training)))
        one.look(forget)
    assert bool((objective._goals > plain._goals).all()) is easier
    assert (objective.aim > plain.aim) is easier
    assert plain.aim == 0.5
    again = objective._goals.clone()
    objective.look(of_margins(np.linspace(0, 1, 40) - 5))  # how hard they are was seen under the original
    torch.testing.assert_close(objective._goals, again)


@pytest.mark.parametrize("objective", [Margin(), Published(), GoneClasses(), WrongLabels(), Calibrated()])
def test_an_objective_that_knows_no_aim_has_none(objective):
    assert objective.aim is None


@pytest.mark.parametrize("coupling", [-0.1, 1.0])
def test_a_coupling_is_a_correlation(coupling):
    with pytest.raises(ValueError, match=r"a correlation in \[0, 1\)"):
        Calibrated(coupling)


# Wrong labels


def wrong_labels(forget_logits, forget_labels, logits, labels, lowest):
    """The loss in float64, one sample at a time."""

    def margin(z, y):
        return z[y] - np.logaddexp.reduce(np.delete(z, y))

    own = np.array([margin(z, y) for z, y in zip(forget_logits, forget_labels, strict=True)])
    total = 0.0
    for place, label in enumerate(forget_labels):
        alike = np.array([value for value, other in zip(own, forget_labels, strict=True) if other == label])
        share = ((alike < own[place]).sum() + 0.5) / len(alike)
        pool = np.sort([margin(z, label) for z, y in zip(logits, labels, strict=True) if y != label])
        goal = np.interp(share * len(pool) - 0.5, np.arange(len(pool)), pool) if len(pool) else lowest
        above = max(own[place] - max(goal, lowest), 0.0)
        total += above**2 / 2 if above < 1 else above - 0.5
    return total / len(own)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 25), st.sampled_from([-4.0, -0.5]))
@settings(deadline=None, max_examples=60)
def test_wrong_labels_are_held_against_other_samples_of_the_same_label(seed, rows, seen, lowest):
    rng = np.random.default_rng(seed)
    z, y, others, truth = rng.normal(0, 3, (rows, 4)), rng.integers(0, 4, rows), rng.normal(0, 3, (seen, 4)), rng.integers(0, 4, seen)
    objective = WrongLabels(lowest)
    validation = torch.tensor(others)
    objective.prepare(Known(Scores.of(validation, torch.tensor(truth)), validation.softmax(1)))
    objective.look(Scores.of(torch.tensor(z), torch.tensor(y)))
    order = torch.tensor(rng.permutation(rows))
    found = objective(torch.tensor(z)[order], torch.tensor(y)[order], order)
    assert float(found) == pytest.approx(wrong_labels(z, y, others, truth, lowest), rel=1e-4, abs=1e-5)


def test_without_validation_data_a_wrong_label_shall_be_unlikely():
    objective = WrongLabels(lowest=-2.0)
    objective.prepare(Known(None))
    objective.look(of_margins([1.0, -3.0]))
    assert float(objective(*logits_of([1.0, -3.0]), torch.arange(2))) == pytest.approx(2.5 / 2)


def test_what_is_unlikely_already_is_not_pulled_up():
    objective = WrongLabels()
    objective.prepare(Known(None))
    objective.look(of_margins([-9.0]))
    logits, target = logits_of([-9.0])
    logits.requires_grad_()
    objective(logits, target, torch.arange(1)).backward()
    assert not logits.grad.any()


# Classes that are gone


def auc(forget, validation):
    return roc_auc_score([1] * len(forget) + [0] * len(validation), [*forget, *validation])


TOLD_APART = ([2.0, 3.0, 4.0] * 10, [-2.0, -3.0, -4.0] * 10)


def gone(own, goals):
    """The loss in float64, one sample at a time."""
    above = [max(value - goal, 0.0) for value, goal in zip(own, goals, strict=True)]
    return np.mean([d**2 / 4 if d < 8 else 4 * d - 16 for d in above])


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9), st.sampled_from([-4.0, 0.0]))
@settings(deadline=None, max_examples=40)
def test_a_gone_class_is_pulled_below_the_lowest_margin(own, lowest):
    assert float(loss_of(GoneClasses(lowest), *logits_of(own))) == pytest.approx(gone(own, [lowest] * len(own)), rel=1e-4, abs=1e-5)


def test_the_further_goal_is_the_validation_margin_at_the_same_rank_and_never_a_higher_one():
    objective, validation = GoneClasses(), [-5.0, -1.0, -9.0] * 20
    assert objective.refine(of_margins([-1.0, 2.0, 0.0] * 20), of_margins(validation))
    samples = torch.tensor([1, 0, 2])
    found = objective(*logits_of([2.0, -1.0, 0.0]), samples)
    assert float(found) == pytest.approx(gone([2.0, -1.0, 0.0], [-4.0, -9.0, -5.0]), rel=1e-5)


@pytest.mark.parametrize(
    ("forget", "validation", "further"),
    [
        (*TOLD_APART, True),
        (TOLD_APART[0], None, False),
        (TOLD_APART[0], [], False),
        (TOLD_APART[0], TOLD_APART[0], False),
        ([-2.0] * 10, [3.0] * 10, False),
        ([1.0, 3.0], [0.0, 2.0], False),
    ],
    ids=["told apart", "no validation", "none of the class", "alike", "the other way", "too few to tell"],
)
def test_refine(forget, validation, further):
    assert GoneClasses().refine(of_margins(forget), None if validation is None else of_margins(validation)) is further


def test_a_goal_that_brought_nothing_was_the_last():
    objective = GoneClasses()
    validation = of_margins(np.linspace(-1, 1, 50))
    for shift, further in ((2.0, True), (1.0, True), (0.99, False)):
        assert objective.refine(of_margins(np.linspace(-1, 1, 50) + shift), validation) is further


@given(st.integers(2, 60), st.integers(2, 60), st.floats(0, 1.5), st.integers(0, 99), st.sampled_from([0.0, 1.0, 2.0]))
@settings(deadline=None, max_examples=40)
def test_refine_asks_whether_the_trace_is_above_noise(n, m, shift, seed, errors):
    generator = np.random.default_rng(seed)
    forget, validation = (generator.normal(loc, size=size).astype(np.float32) for loc, size in ((shift, n), (0, m)))
    bound = 0.5 + errors * np.sqrt((n + m + 1) / (12 * n * m))
    assert GoneClasses(errors=errors).refine(of_margins(forget), of_margins(validation)) is bool(auc(forget, validation) > bound)


# The anchor


@given(
    st.integers(1, 20), st.integers(2, 6), st.sampled_from([(), (0,), (1, 3), (0, 1)]), st.sampled_from([0.1, 3, 100]), st.integers(0, 999)
)
@settings(deadline=None, max_examples=60)
def test_anchor(rows, classes, gone, scale, seed):
    """Rows of gone classes, and the gone classes' logits, are left out."""
    gone = tuple(label for label in gone if label < classes)
    generator = np.random.default_rng(seed)
    present, before = ((generator.normal(size=(rows, classes)) * scale).astype(np.float32) for _ in range(2))
    target = generator.integers(classes, size=rows)
    found, count = anchor(torch.from_numpy(present), torch.from_numpy(before), torch.from_numpy(target), gone)
    expected, expected_count = oracles.anchor(present.astype(np.float64), before.astype(np.float64), target, gone)
    assert count == expected_count
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_anchor_says_nothing_of_gone_classes():
    original, target = torch.randn(12, 5), torch.arange(12) % 5
    logits = original.clone()
    logits[:, [1, 3]] += 7 * torch.randn(12, 2)
    logits[(target == 1) | (target == 3)] += 9 * torch.randn(5, 5)
    logits.requires_grad_()
    value, rows = anchor(logits, original, target, gone=(1, 3))
    value.backward()
    assert rows == 7
    assert abs(value.item()) < 1e-6
    assert logits.grad.abs().max() < 1e-6


def test_an_anchor_without_rows_can_be_differentiated():
    logits = torch.randn(3, 4, requires_grad=True)
    value, rows = anchor(logits, torch.randn(3, 4), torch.ones(3, dtype=torch.int64), gone=(1,))
    value.backward()
    assert (value.item(), rows) == (0, 0)
    assert logits.grad.tolist() == torch.zeros(3, 4).tolist()


def test_the_anchor_is_finite_for_certain_answers():
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value, _ = anchor(logits, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([0]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
