"""Mixup and cutmix: a batch of pictures and class ids -> blended pictures and class shares.

Knows torchvision's transforms. Does not know models or losses. Draws from torch's global random state, which the loop
seeds by epoch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# (images uint8 (N, H, W, 3), class ids (N,)) -> (images (N, H, W, 3), class shares float32 (N, C))
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build_mix(mixup: float, cutmix: float, num_classes: int) -> Mix | None:
    """A mixer for the given alphas of the beta distribution; with both, each batch draws one. None where both are 0.

    Source: Zhang et al. 2018, Yun et al. 2019.
    """
    if mixup == 0 and cutmix == 0:
        return None
    from torchvision.transforms import v2

    ways = [
        way(alpha=alpha, num_classes=num_classes) for way, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    chosen = ways[0] if len(ways) == 1 else v2.RandomChoice(ways)

    def mix(images: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
        # Blending uint8 would round; the network's normalisation takes floats of 0..255 as well.
        mixed, shares = chosen(images.permute(0, 3, 1, 2).float(), class_ids)
        return mixed.permute(0, 2, 3, 1), shares

    return mix
