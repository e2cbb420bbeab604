"""What an adapter needs of transformers' ``Trainer``: to be told how far training is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tdecomp_torch.handle import Adapter
from tdecomp_torch.model.gathering import is_part

__all__ = ["AdapterCallback"]


class AdapterCallback(TrainerCallback):
    """Tells an adapter the step, for scales and shares that follow it, and saves it by itself.

    For a model of `attach`, and for one of PEFT with ``adapter_of(model)``. Checkpoints are the
    Trainer's own, with factors and model; resuming from one goes on at its step. Beside them, every
    checkpoint gets the folder ``adapter``, which `load_adapter` puts on the plain model.

    Parameters
    ----------
    adapter
        On the model that is trained.
    folder
        Name of the folder inside each checkpoint; None: the Trainer's checkpoint is enough.

    Examples
    --------
    >>> from transformers import Trainer
    >>> def trained(model, adapter, data, arguments):
    ...     callbacks = [AdapterCallback(adapter)]
    ...     Trainer(model, arguments, train_dataset=data, callbacks=callbacks).train()
    """

    def __init__(self, adapter: Adapter, folder: str | None = "adapter"):
        self.adapter, self.folder = adapter, folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start, or go on, at the step of the trainer."""
        self.adapter.step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        self.adapter.step(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the adapter into the checkpoint that was just written.

        Of several processes with the whole adapter one writes; sharded, all come together.
        """
        if self.folder is not None and (state.is_world_process_zero or self._is_sharded()):
            checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.adapter.save(checkpoint / self.folder, overwrite=True)

    def _is_sharded(self) -> bool:
        factors = self.adapter.factors().values()
        return any(is_part(factor) or hasattr(factor, "full_tensor") for factor in factors)
