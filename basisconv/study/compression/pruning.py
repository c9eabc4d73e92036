"""Whole channels removed, by torch-pruning: groups with the least magnitude over all layers.

Fang et al., "DepGraph: Towards Any Structural Pruning" (2023).
"""

from __future__ import annotations

import copy
import warnings

from torch import Tensor, nn


def pruned(model: nn.Module, share: float, image: Tensor) -> nn.Module:
    """A copy with this share of the channels, (1, c, h, w) being an image; all classes stay.

    Channels go in pairs, and each layer keeps a twentieth of its own.

    Raises:
        ImportError: if torch-pruning is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import torch_pruning as tp

    small = copy.deepcopy(model).eval()
    classifier = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    tp.pruner.BasePruner(
        small, image, importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True, pruning_ratio=1 - share, max_pruning_ratio=0.95,
        ignored_layers=[classifier], round_to=2,
    ).step()  # fmt: skip
    return small
