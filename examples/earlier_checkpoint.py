"""A checkpoint trained before this package was there: one pass over its data stands for the callback that was not in its trainer.

The pass may be over a part of the data, as long as what shall be forgotten is in it: then the rest of that part is what is protected.

Run: python examples/earlier_checkpoint.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from existing_trainer import DigitsData, DigitsModule, tell, trainer
from torch.utils.data import DataLoader, Subset

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace, collect


def main(folder: Path) -> None:
    L.seed_everything(0, verbose=False)
    data, checkpoint = DigitsData(), folder / "old.ckpt"

    # What lies in an archive: a checkpoint, and no statistics beside it.
    fit = L.Trainer(max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    fit.fit(DigitsModule(), datamodule=data)
    fit.save_checkpoint(checkpoint)

    # All of its training data: the file is written once, and serves every later request.
    model = DigitsModule.load_from_checkpoint(checkpoint, weights_only=True)
    collect(model, data.train_dataloader()).save(folder / "old.retain.safetensors")
    space = RetainSpace.load(folder / "old.retain.safetensors")
    print(f"collected over {space.provenance.samples} samples, {len(space.protected)} layers are protected")
    pgu = PGUCallback(ForgetRequest(classes=[3]), retain_space=folder / "old.retain.safetensors")
    trainer(100, pgu).fit(model, datamodule=data)
    tell("all of the data", pgu.report)

    # Every third sample of what is retained, and all of what shall go. The training loader then is that part.
    model = DigitsModule.load_from_checkpoint(checkpoint, weights_only=True)
    labels = torch.tensor([label for _, label in data.train])
    kept, gone = (labels != 3).nonzero().flatten(), (labels == 3).nonzero().flatten()
    part = DataLoader(Subset(data.train, torch.cat([kept[::3], gone]).tolist()), batch_size=64)
    pgu = PGUCallback(ForgetRequest(classes=[3]), retain_space=collect(model, part))
    trainer(100, pgu).fit(model, part, data.val_dataloader())
    tell(f"a part of {len(part.dataset)} samples", pgu.report)


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/earlier_checkpoint")
    chosen.mkdir(parents=True, exist_ok=True)
    main(chosen)
