"""Have the compiled loops at hand before they are needed: seconds where they were never compiled, else a moment.

python -m supsup_online.warm_up         compile what training and inference on a CPU need, into the cache
"""

import numpy as np
import torch

from supsup_online import inference, many_masks
from supsup_online.fused_trainer import trainer_for
from supsup_online.network import Network
from supsup_online.optimisers import Adam, Optimiser
from supsup_online.spec import BankSpec
from supsup_online.types import Precision


def warm_up(network: Network, optimiser: Optimiser | None = None, precision: Precision = "float32") -> None:
    """Go once through a step and through every kind of inference, on noise and on masks that are thrown away.

    A trainer does so before it joins its consumer group: nobody waits then.
    """
    if network.device.type != "cpu":
        return
    rows = many_masks.FEW + 1 if network.is_connected else 2  # a pass through a deep network takes its time
    x = torch.zeros(rows, *network.spec.input_shape)
    trainer = trainer_for(network, optimiser or Adam(), precision)
    hot = trainer.start(0)
    trainer.update(hot, trainer.evaluate(hot, x, torch.zeros(len(x), dtype=torch.int64)))
    masks = np.stack([trainer.pack(hot)])
    inference.one_shot(network, masks, x)
    for rows in (1, len(x)):
        inference.exact_entropies(network, masks, x[:rows])


if __name__ == "__main__":
    warm_up(Network.build(BankSpec()))
