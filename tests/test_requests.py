"""Requests against plain Python filters, and what is refused."""

import json
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pgu_lightning.files import digest
from pgu_lightning.requests import ForgetRequest
from pgu_lightning.views import View, labels


class Columns(Dataset):
    """Columns without readable samples: reading one is a failure."""

    def __init__(self, size=0, **columns):
        self.size = size or len(next(iter(columns.values())))
        for name, values in columns.items():
            setattr(self, name, values)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        raise AssertionError("a sample was read")


class Samples(Dataset):
    """Samples without columns."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Batched(Samples):
    """Samples that can be read many at a time."""

    asked: list[list[int]]

    def __getitems__(self, indices):
        self.asked = [*getattr(self, "asked", []), list(indices)]
        return [self.samples[index] for index in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


def nest(dataset, draw):
    """The dataset under up to three levels of Subset, View and ConcatDataset, and for each sample its place in the dataset."""
    places = list(range(len(dataset)))
    for _ in range(draw(st.integers(0, 3))):
        how = draw(st.sampled_from(["subset", "view", "concat"]))
        if how == "concat":
            dataset, places = ConcatDataset([dataset, dataset]), places + places
            continue
        chosen = draw(st.lists(st.integers(0, len(places) - 1), min_size=1, max_size=12))
        places = [places[position] for position in chosen]
        dataset = Subset(dataset, chosen) if how == "subset" else View(dataset, torch.tensor(chosen))
    return dataset, places


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_split_is_the_partition_that_a_plain_filter_makes(data):
    draw = data.draw
    values = draw(st.lists(st.integers(0, 4), min_size=2, max_size=20))
    container = draw(st.sampled_from([list, np.array, torch.tensor, lambda v: np.array(v, dtype=np.uint8)]))
    names = [f"person{value}" for value in draw(st.lists(st.integers(0, 6), min_size=len(values), max_size=len(values)))]
    dataset, places = nest(Columns(targets=container(values), ids=names, metadata=[{"name": name} for name in names]), draw)
    values, names = [values[place] for place in places], [names[place] for place in places]

    way = draw(st.sampled_from(["classes", "indices", "ids", "where"]))
    pool = {"classes": values, "indices": range(len(values)), "ids": names, "where": names}[way]
    chosen = draw(st.lists(st.sampled_from(sorted(set(pool))), unique=True, min_size=1))
    expected = [position for position, value in enumerate(pool) if value in chosen]
    request = ForgetRequest(**{way: (lambda metadata: metadata["name"] in chosen) if way == "where" else chosen})

    if len(expected) == len(values):
        with pytest.raises(ValueError, match="everything=True"):
            request.split(dataset)
        return
    split = request.split(dataset)
    assert split.forget.positions.tolist() == expected
    assert split.retain.positions.tolist() == [i for i in range(len(values)) if i not in expected]
    assert split.forget.dataset is dataset
    assert split.retain.dataset is dataset
    assert labels(split.forget).tolist() == [values[i] for i in expected]
    assert split.kind == ("class" if way == "classes" else "samples")
    assert split.classes == (tuple(sorted(chosen)) if way == "classes" else ())
    assert split.digest == digest(sorted(chosen if way == "ids" else map(str, expected)))


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        OmegaConf.create,
        iter,
        set,
        lambda v: [np.int64(one) for one in v],
        lambda v: list(torch.tensor(v)),
    ],
    ids=["list", "tuple", "numpy", "torch", "omegaconf", "iterator", "set", "numpy scalars", "torch scalars"],
)
@pytest.mark.parametrize("way", ["classes", "indices", "ids"])
def test_sequences_are_frozen(make, way):
    entries = getattr(ForgetRequest(**{way: make([3, 1, 4])}), way)
    assert isinstance(entries, tuple)
    assert sorted(entries) == (["1", "3", "4"] if way == "ids" else [1, 3, 4])
    assert {type(entry) for entry in entries} == {str if way == "ids" else int}


def test_range_is_a_sequence():
    assert ForgetRequest(indices=range(2, 5)).indices == (2, 3, 4)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda v: [str(one) for one in v], lambda v: list(torch.tensor(v))])
def test_ids_are_compared_as_text(make):
    dataset = Columns(ids=make([10, 11, 12, 11]))
    for ids in ([11], ["11"], np.array(["11"])):
        assert ForgetRequest(ids=ids).split(dataset).forget.positions.tolist() == [1, 3]


def test_another_id_attribute():
    dataset = Subset(Columns(person=["a", "b", "c"]), [2, 1])
    assert ForgetRequest(ids=["c"], id_attribute="person").split(dataset).forget.positions.tolist() == [0]


def test_everything():
    split = ForgetRequest(everything=True).split(Columns(3))
    assert (len(split.forget), len(split.retain), split.kind, split.classes) == (3, 0, "samples", ())
    split = ForgetRequest(everything=True, kind="class").split(Columns(targets=[5, 2, 5]))
    assert (split.kind, split.classes) == ("class", (2, 5))
    assert ForgetRequest(everything=True, kind="poison").split(Columns(3)).kind == "poison"


def test_a_label_that_is_poison_is_no_class_that_is_gone():
    split = ForgetRequest(classes=[1], kind="poison").split(Columns(targets=[0, 1]))
    assert (split.kind, split.classes, split.forget.positions.tolist()) == ("poison", (), [1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of classes=, indices=, ids=, where=, everything=True; got none"),
        ({"ids": ["a"], "classes": [1]}, ValueError, "got classes= and ids="),
        ({"where": bool, "everything": True}, ValueError, "got where= and everything=True"),
        ({"classes": []}, ValueError, "classes is empty"),
        ({"ids": ["a", "b", "a", "b", "c"]}, ValueError, "ids names more than once: 'a', 'b'."),
        ({"ids": [1, "1"]}, ValueError, "ids names more than once: '1'"),
        ({"indices": [3, 3]}, ValueError, "indices names more than once: 3"),
        ({"indices": [0, -1, -7]}, ValueError, "count from 0, got -1, -7"),
        ({"indices": [True]}, TypeError, "indices must be whole numbers, got True"),
        ({"indices": [1, 2.0]}, TypeError, "indices must be whole numbers, got 2.0"),
        ({"indices": torch.tensor([True, False])}, TypeError, "got True, False"),
        ({"indices": np.array([0.0, 1.5])}, TypeError, "got 0.0, 1.5"),
        ({"indices": ["1"]}, TypeError, "whole numbers, got '1'"),
        ({"classes": [None]}, TypeError, "classes must be whole numbers, got None"),
        ({"ids": [1.5]}, TypeError, "ids must be text or whole numbers, got 1.5"),
        ({"ids": "ann"}, TypeError, r"ids must be a sequence, got str; one entry is \[entry\]"),
        ({"ids": {"a": 1}}, TypeError, "got dict"),
        ({"classes": 3}, TypeError, "classes must be a sequence, got int"),
        ({"classes": torch.tensor(3)}, TypeError, "classes must be a sequence"),
        ({"where": "x > 1"}, TypeError, "where must be a function of a sample's metadata, got str"),
        ({"ids": ["a"], "kind": "person"}, ValueError, "one of class, samples, poison; got 'person'"),
        ({"ids": ["a"], "kind": "class"}, ValueError, r"goes with classes= or everything=True, got ids="),
        ({"indices": [-one for one in range(1, 14)]}, ValueError, "-9, -10 and 3 more"),
        ({"indices": [1], "corrected": [2]}, ValueError, "go with wrong ones, kind='poison'; the kind is 'samples'"),
        ({"classes": [1], "corrected": [2]}, ValueError, "the kind is 'class'"),
        ({"classes": [1], "kind": "poison", "corrected": [2]}, ValueError, "choose them with indices=, ids= or everything=True"),
        ({"where": bool, "kind": "poison", "corrected": [2]}, ValueError, "needs an order of the samples"),
        ({"indices": [1, 2], "kind": "poison", "corrected": [2]}, ValueError, "has 1 labels for 2 samples"),
        ({"ids": ["a"], "kind": "poison", "corrected": [2, 3]}, ValueError, "has 2 labels for 1 samples"),
        ({"indices": [1], "kind": "poison", "corrected": []}, ValueError, "corrected is empty"),
        ({"indices": [1], "kind": "poison", "corrected": [-2]}, ValueError, "count from 0, got -2"),
        ({"indices": [1], "kind": "poison", "corrected": [2.0]}, TypeError, "corrected must be whole numbers, got 2.0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_requests_that_make_no_sense_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ForgetRequest(**arguments)


@pytest.mark.parametrize(
    ("request_", "dataset", "error", "message"),
    [
        (
            ForgetRequest(classes=[0, 7, 8]),
            Columns(targets=[0, 1, 2]),
            ValueError,
            r"No sample has the label 7, 8; the dataset has 0, 1, 2",
        ),
        (ForgetRequest(indices=[2, 3, 9]), Columns(3), ValueError, "has 3 samples, so there is none at 3, 9"),
        (ForgetRequest(ids=["a", "x", "y"]), Columns(ids=["a", "b"]), ValueError, "'ids' .*: 'x', 'y'"),
        (ForgetRequest(ids=range(20, 33)), Columns(ids=["a", "b"]), ValueError, "'29' and 3 more"),
        (ForgetRequest(where=lambda metadata: False), Columns(metadata=[1, 2]), ValueError, "matches none of the 2 samples"),
        (ForgetRequest(everything=True), Samples([]), ValueError, "matches none of the 0 samples"),
        (ForgetRequest(indices=[0, 1]), Columns(2), ValueError, "matches all 2 samples.*everything=True.*train a new model"),
        (ForgetRequest(ids=["a"]), Columns(2), ValueError, r"`dataset.ids`, and Columns has none.*id_attribute="),
        (ForgetRequest(where=bool), Subset(Columns(2), [0]), ValueError, r"`dataset.metadata`, and Subset has none. .*entry a sample\."),
        (ForgetRequest(ids=["a"]), Columns(3, ids=["a", "b"]), ValueError, "3 samples, but a column of 2 entries"),
        (ForgetRequest(classes=[0]), Columns(targets=[0.0, 1.0]), TypeError, r"float32 of shape \(2,\).*dataset.targets"),
        (ForgetRequest(classes=[0]), Columns(targets=[False, True]), TypeError, "torch.bool"),
        (ForgetRequest(classes=[0]), Columns(targets=["cat", "dog"]), TypeError, "one whole number a sample, got list"),
        (ForgetRequest(classes=[0]), Columns(targets=torch.zeros(2, 3).long()), TypeError, r"shape \(2, 3\)"),
        (ForgetRequest(classes=[0]), Samples([(1, 2, 0), (1, 2, 1)]), TypeError, r"must be \(x, y\) or a mapping.*got tuple"),
        (ForgetRequest(classes=[0]), Samples([(1, 0.5), (1, 1.5)]), TypeError, "one whole number a sample, got torch.float"),
        (ForgetRequest(everything=True), Stream(), TypeError, r"Stream can only be iterated over.*everything=True"),
        (ForgetRequest(indices=[0]), (one for one in range(3)), TypeError, "generator can only be iterated over"),
        (
            ForgetRequest(indices=[3, 1, 2], kind="poison", corrected=[1, 1, 2]),
            Columns(targets=[0, 1, 2, 0]),
            ValueError,
            "already, at positions 1, 2: .*Leave these samples out",
        ),
        (
            ForgetRequest(everything=True, kind="poison", corrected=[1]),
            Columns(targets=[0, 0]),
            ValueError,
            "has 1 labels for 2 samples: one for each",
        ),
        (
            ForgetRequest(ids=["a"], kind="poison", corrected=[1]),
            Columns(targets=[0, 0, 0], ids=["a", "b", "a"]),
            ValueError,
            "has 1 labels for 1 ids, which 2 samples have: .*Choose them with indices=",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Length of IterableDataset")
def test_requests_that_do_not_fit_the_dataset_are_refused_whole(request_, dataset, error, message):
    with pytest.raises(error, match=message):
        request_.split(dataset)


@pytest.mark.parametrize(
    "dataset",
    [
        Columns(targets=[2, 0, 1]),
        Columns(labels=np.array([2, 0, 1], dtype=np.uint16)),
        TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1], dtype=torch.int32)),
        ConcatDataset([Columns(targets=[2]), TensorDataset(torch.zeros(2), torch.tensor([0, 1]))]),
        ConcatDataset([Columns(targets=[2]), ConcatDataset([Columns(labels=[0]), Columns(targets=[1])])]),
        Subset(Subset(Columns(targets=[9, 1, 2, 0]), [2, 3, 1]), torch.tensor([0, 1, 2])),
        Subset(Columns(targets=[0, 1, 2]), [-1, 0, 1]),
        View(Subset(Columns(targets=[0, 1, 2]), range(3)), torch.tensor([2, 0, 1])),
        Samples([(0.5, 2), (0.5, np.int64(0)), (0.5, torch.tensor(1))]),
        Samples([{"label": 2}, {"labels": 0}, {"target": torch.tensor(1)}]),
        Subset(Samples([("x", 0), ("x", 1), ("x", 2)]), [2, 0, 1]),
        ConcatDataset([Columns(targets=[2, 0, 1]), Subset(Columns(targets=[5]), [])]),
    ],
)
def test_labels_are_found_wherever_they_are(dataset):
    found = labels(dataset)
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0, 1]


def test_reading_labels_reads_the_subset_alone():
    class Counted(Samples):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    seen = []
    dataset = Subset(Counted([(0, place % 3) for place in range(100)]), [5, 50])
    assert labels(dataset).tolist() == [2, 2]
    assert seen == [5, 50]


def test_three_tensors_have_no_certain_label():
    dataset = TensorDataset(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([7, 8]))
    with pytest.raises(TypeError, match=r"dataset\.targets"):
        ForgetRequest(classes=[7]).split(dataset)


def test_a_column_of_the_outer_dataset_goes_before_an_inner_one():
    dataset = Subset(Columns(targets=[0, 1, 2]), [0, 1])
    dataset.targets = [5, 6]
    assert labels(dataset).tolist() == [5, 6]


def test_a_view_reads_what_it_shows():
    view = View(Samples("abcdef"), torch.tensor([4, 0, 2]))
    assert (list(view), len(view), view[-1]) == (["e", "a", "c"], 3, "c")
    assert view.__getitems__([2, 0]) == ["c", "e"]
    batched = Batched("abcdef")
    assert list(DataLoader(View(batched, torch.tensor([4, 0, 2])), batch_size=2)) == [["e", "a"], ["c"]]
    assert batched.asked == [[4, 0], [2]]
    assert View(batched, torch.tensor([1])).__getitems__([]) == []
    for wrong in (torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([True])):
        with pytest.raises(TypeError, match="int64 of shape"):
            View(batched, wrong)


def test_a_view_does_not_copy():
    dataset = TensorDataset(torch.arange(4), torch.tensor([0, 1, 0, 1]))
    split = ForgetRequest(classes=[1]).split(dataset)
    dataset.tensors[0][1] = 99
    assert split.forget[0][0] == 99


def test_pickle():
    split = ForgetRequest(classes=[1]).split(TensorDataset(torch.arange(4), torch.tensor([0, 1, 0, 1])))
    again = pickle.loads(pickle.dumps(split))
    assert [x.item() for x, _ in again.forget] == [1, 3]
    assert (again.digest, again.classes, again.entries()) == (split.digest, split.classes, split.entries())
    request = ForgetRequest(ids=["a", 2], kind="poison")
    assert pickle.loads(pickle.dumps(request)) == request


def test_classes_that_are_gone_are_ascending():
    assert ForgetRequest(classes=[2, 0]).split(Columns(targets=[0, 1, 2])).classes == (0, 2)


def test_the_digest_does_not_depend_on_the_order():
    dataset = Columns(ids=["b", "a", "c"])
    one, other = (ForgetRequest(ids=ids).split(dataset).digest for ids in (["a", "b"], ["b", "a"]))
    assert one == other == digest(["a", "b"])


def test_nobody_is_named_in_a_repr():
    request = ForgetRequest(ids=["ann.lee@example.org", "bob@example.org"], kind="poison")
    known = digest(["ann.lee@example.org", "bob@example.org"])[:8]
    assert repr(request) == f"ForgetRequest(poison, 2 ids, digest {known})"
    dataset = Columns(ids=["ann.lee@example.org", "bob@example.org", "eve"], targets=[0, 1, 1])
    assert "example.org" not in repr(request.split(dataset))
    assert repr(ForgetRequest(indices=[12345])) == f"ForgetRequest(samples, 1 indices, digest {digest(['12345'])[:8]})"
    assert repr(ForgetRequest(classes=[3])) == "ForgetRequest(class, 1 classes)"
    assert repr(ForgetRequest(where=bool)) == "ForgetRequest(samples, where)"
    assert repr(ForgetRequest(everything=True)) == "ForgetRequest(samples, everything)"


def test_an_earlier_request_is_remembered_without_its_ids():
    dataset = Columns(ids=["a", "b", "c", "d", "e"])
    first = ForgetRequest(ids=["b", "d"]).split(dataset)
    assert all(len(entry) == 16 and int(entry, 16) >= 0 for entry in first.entries())
    assert len(set(first.entries())) == 2
    ForgetRequest(ids=["a", "c"]).split(dataset, earlier=first.entries())
    with pytest.raises(ValueError, match="earlier request: the samples at positions 1, 3"):
        ForgetRequest(ids=["b", "c", "d"]).split(dataset, earlier=set(first.entries()))
    shorter = Columns(ids=["a", "b", "c", "d"])
    ForgetRequest(ids=["b"]).split(shorter, earlier=first.entries())


@pytest.mark.parametrize(
    "request_",
    [
        ForgetRequest(indices=[4, 0, 2], kind="poison", corrected=torch.tensor([7, 5, 6])),
        ForgetRequest(ids=["e", "a", "c"], kind="poison", corrected=[7, 5, 6]),
    ],
    ids=["indices", "ids"],
)
def test_corrected_labels_follow_their_samples(request_):
    split = request_.split(Subset(Columns(targets=[0, 1, 2, 3, 4], ids=["a", "b", "c", "d", "e"]), [1, 0, 3, 2, 4]))
    dataset = {"a": 5, "c": 6, "e": 7}
    shown = [["b", "a", "d", "c", "e"][position] for position in split.forget.positions.tolist()]
    if request_.ids is not None:
        assert split.corrected.tolist() == [dataset[name] for name in shown]
    else:  # positions are of the subset
        assert dict(zip(split.forget.positions.tolist(), split.corrected.tolist(), strict=True)) == {4: 7, 0: 5, 2: 6}
    answers = torch.nn.functional.one_hot(torch.tensor([split.corrected[0], split.corrected[1], 0]), 8).float()
    assert split.corrected_accuracy(answers) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="6 answers for 3 samples: leave corrected= out"):
        split.corrected_accuracy(answers.repeat(2, 1))


def test_corrected_labels_of_everything_and_of_nothing():
    dataset = Columns(targets=[0, 1, 2])
    assert ForgetRequest(everything=True, kind="poison", corrected=[1, 2, 0]).split(dataset).corrected.tolist() == [1, 2, 0]
    split = ForgetRequest(indices=[0], kind="poison").split(dataset)
    assert (split.corrected, split.corrected_accuracy(torch.ones(1, 3))) == (None, None)


def test_corrected_labels_stand_in_no_repr():
    request = ForgetRequest(indices=[1, 2], kind="poison", corrected=[98765, 43210])
    assert repr(request).endswith(", labels corrected)")
    assert "98765" not in repr(request)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "id, label ,who\nann,3,x\nbob,0,y\n", {"ids": ("ann", "bob"), "corrected": (3, 0)}),
        ("a.csv", "label,index\n3,5\n0,4\n", {"indices": (5, 4), "corrected": (3, 0)}),
        ("a.json", '{"ids": ["ann"], "corrected": [3]}', {"ids": ("ann",), "corrected": (3,)}),
    ],
)
def test_corrected_labels_from_a_file(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    request = ForgetRequest.from_file(tmp_path / name, kind="poison")
    assert {key: getattr(request, key) for key in expected} == expected
    with pytest.raises(ValueError, match=r"a\.\w+: Corrected labels \(corrected=, in a csv the column label\)"):
        ForgetRequest.from_file(tmp_path / name, kind="samples")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "# who asked\nann\n\n  bob \r\nc#3\n", {"ids": ("ann", "bob", "c#3"), "kind": "samples"}),
        ("a.TXT", "\ufeffänne\n", {"ids": ("änne",)}),
        ("a.csv", "id\nann\nbob\n", {"ids": ("ann", "bob")}),
        ("a.csv", '\ufeffdate, id \r\n2026-01-01,"lee, ann"\r\n,\r\n2026-01-02, 7 \r\n', {"ids": ("lee, ann", "7")}),
        ("a.csv", "index\n5\n2\n", {"indices": (5, 2)}),
        ("a.csv", "class\n3\n", {"classes": (3,), "kind": "class"}),
        ("a.json", '["ann", 7]', {"ids": ("ann", "7")}),
        ("a.json", '{"indices": [4, 2], "kind": "poison"}', {"indices": (4, 2), "kind": "poison"}),
        ("a.json", '{"classes": [4]}', {"classes": (4,), "kind": "class"}),
        ("a.json", '{"ids": ["x"]}', {"ids": ("x",), "kind": "samples"}),
    ],
)
def test_from_file(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text.encode())
    request = ForgetRequest.from_file(tmp_path / name)
    assert {key: getattr(request, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "ids: [a]", r"a request is read from .csv, .json, .txt, not from .yaml"),
        ("request", "a", "not from a file without a suffix"),
        ("a.txt", "# nobody\n\n", "ids is empty"),
        ("a.txt", "a\nb\na\n", "ids names more than once: 'a'"),
        ("a.csv", "", "line 1 must name exactly one column id, index, class; it names none"),
        ("a.csv", "name\nann\n", "it names none"),
        ("a.csv", "id,index\nann,3\n", "it names id and index"),
        ("a.csv", "id,id\nann,3\n", "it names id and id"),
        ("a.csv", "id\n", "ids is empty"),
        ("a.csv", "date,id\nx,ann\nx\n,bob\nx,  \n", "id must be text; line 3 has '', line 5 has ''"),
        ("a.csv", "index\n3\nx\n4.0\n1_0\n", "index must be a whole number; line 3 has 'x', line 4 has '4.0', line 5 has '1_0'"),
        ("a.csv", "index\n3\n-1\n", "count from 0, got -1"),
        ("a.csv", "index,label\n3,1\n4\n5,b\n", "label must be a whole number; line 3 has '', line 4 has 'b'"),
        ("a.csv", 'id\n"ann\n', "unexpected end of data"),
        ("a.csv", "index\n" + "x\n" * 14, "line 11 has 'x' and 4 more"),
        ("a.json", '["a",\n "b"', "line 2 column 5"),
        ("a.json", '"a"', "a list of ids or an object with one of classes, indices, ids, got str"),
        ("a.json", '{"people": ["a"], "id": [1]}', "unknown keys 'id', 'people'; an object has one of classes, indices, ids"),
        ("a.json", '{"ids": ["a"], "classes": [1]}', "got classes= and ids="),
        ("a.json", '{"kind": "samples"}', "got none"),
        ("a.json", '{"ids": "ann"}', "ids must be a sequence, got str"),
        ("a.json", '{"ids": ["a"], "kind": "people"}', "one of class, samples, poison; got 'people'"),
        ("a.json", "[1, true]", "got True"),
        ("a.json", "[NaN]", "got nan"),
        ("a.json", "[null]", "got None"),
        ("a.txt", b"\xff\xfe", "utf-8"),
    ],
)
def test_files_that_are_no_request_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        ForgetRequest.from_file(path)
    assert str(path) in str(caught.value)


def test_arguments_of_from_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"ids": ["a"], "kind": "samples"}))
    request = ForgetRequest.from_file(path, kind="poison", id_attribute="person")
    assert (request.kind, request.id_attribute) == ("poison", "person")
    with pytest.raises(FileNotFoundError):
        ForgetRequest.from_file(tmp_path / "none.csv")


@pytest.mark.parametrize("way", ["classes", "indices", "ids"])
def test_a_million_samples(way):
    size = 1_000_000
    dataset = Subset(Columns(targets=torch.arange(size) % 100, ids=[f"p{place}" for place in range(size)]), torch.arange(size).flip(0))
    request = ForgetRequest(**{way: {"classes": [99], "indices": range(0, size, 100), "ids": [f"p{p}" for p in range(99, size, 100)]}[way]})
    start = time.perf_counter()
    split = request.split(dataset)
    assert time.perf_counter() - start < 2
    assert torch.equal(split.forget.positions, torch.arange(0, size, 100))
    assert torch.equal(split.retain.positions, torch.tensor([p for p in range(size) if p % 100]))
