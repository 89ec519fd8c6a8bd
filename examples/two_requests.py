"""One request after another on the same model: the statistics shrink with each, and what is forgotten cannot be asked for again.

Run: python examples/two_requests.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
from existing_trainer import DigitsData, DigitsModule, tell, trainer
from torch.utils.data import Subset

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace


class People(Subset):
    """The training samples with a column of ids, one a sample: ``ForgetRequest(ids=...)`` looks there."""

    @property
    def ids(self) -> list[str]:
        return [f"person-{position:04d}" for position in self.indices]


class PeopleData(DigitsData):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.train = People(self.train.dataset, self.train.indices)


def main(folder: Path) -> None:
    L.seed_everything(0, verbose=False)
    data, space = PeopleData(), folder / "model.retain.safetensors"
    model, learn = DigitsModule(), trainer(12, PGUCallback())
    learn.fit(model, datamodule=data)
    learn.save_checkpoint(folder / "model.ckpt")

    people = [name for name, (_, label) in zip(data.train.ids, data.train, strict=True) if label != 7][:40]
    monday, tuesday = ForgetRequest(ids=people), ForgetRequest(classes=[7])
    for day, request in {"Monday, forty people": monday, "Tuesday, all sevens": tuesday}.items():
        pgu = PGUCallback(request, retain_space=space)  # the file is replaced by one without what was forgotten
        fit = trainer(150, pgu)
        fit.fit(model, datamodule=data)
        fit.save_checkpoint(folder / "model.ckpt")  # and lies beside the new weights
        tell(day, pgu.report)
        print(f"the statistics hold {RetainSpace.load(space).provenance.samples} samples")

    try:
        trainer(150, PGUCallback(monday, retain_space=space)).fit(model, datamodule=data)
    except ValueError as refusal:
        print(f"Wednesday, the forty again: {refusal}")


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/two_requests")
    chosen.mkdir(parents=True, exist_ok=True)
    main(chosen)
