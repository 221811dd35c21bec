"""CLIP's ModifiedResNet (arXiv:2103.00020, section 2.4): a stem of three convolutions, average
pooling before every convolution that would have had a stride, and attention in place of the last
pooling.

Names are those of OpenAI's checkpoints, so that a state dict of theirs fits. This room does not
know where it is from.

Shapes: B images, W = 32 x width channels at the end, P positions, H heads, d head width, D feature
width.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

GROWN = 4  # a block gives this many times the channels that it has inside
SHRUNK = 32  # pixels of an image's side for each position of the last layer


class Block(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, given: int, inside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(given, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = (
            nn.Conv2d(inside, inside, 3, padding=1, bias=False),
            nn.BatchNorm2d(inside),
        )
        self.pool = nn.AvgPool2d(stride)
        self.conv3, self.bn3 = (
            nn.Conv2d(inside, GROWN * inside, 1, bias=False),
            nn.BatchNorm2d(GROWN * inside),
        )
        layers = OrderedDict[str, nn.Module]()
        if stride > 1 or given != GROWN * inside:
            layers["-1"] = nn.AvgPool2d(stride)
            layers["0"] = nn.Conv2d(given, GROWN * inside, 1, bias=False)
            layers["1"] = nn.BatchNorm2d(GROWN * inside)
        self.downsample = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.bn1(self.conv1(x)))
        inner = relu(self.bn2(self.conv2(inner)))
        return relu(self.bn3(self.conv3(self.pool(inner))) + self.downsample(x))


class AttentionPool(nn.Module):
    """What the mean of all positions asks of them and of itself."""

    def __init__(self, positions: int, width: int, heads: int, features: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(1 + positions, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, features)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.c_proj(self._seen(x, 1).flatten(1))
        return features

    def everywhere(self, x: Tensor) -> Tensor:
        """[B, 1 + P, D]: the same, and behind it what each position asks of all."""
        features: Tensor = self.c_proj(self._seen(x, None).transpose(1, 2).flatten(2))
        return features

    def _seen(self, x: Tensor, asking: int | None) -> Tensor:
        """[B, H, asking, d]; None: all ask, the mean first."""
        x_BPW = x.flatten(2).mT
        x_BPW = torch.cat([x_BPW.mean(1, keepdim=True), x_BPW], dim=1) + self.positional_embedding

        def heads(projected: Tensor) -> Tensor:
            split: Tensor = projected.unflatten(-1, (self.heads, -1))
            return split.transpose(1, 2)  # [B, H, P, d]

        return scaled_dot_product_attention(
            heads(self.q_proj(x_BPW[:, :asking])),
            heads(self.k_proj(x_BPW)),
            heads(self.v_proj(x_BPW)),
        )


class ModifiedResNet(nn.Module):
    """Pixel values [B, 3, side, side] to features [B, D], not normalised; `blocks` are those of its
    four layers.
    """

    def __init__(self, side: int, width: int, blocks: Sequence[int], features: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(3, width // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width // 2),
        )
        self.conv2, self.bn2 = (
            nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
        )
        self.conv3, self.bn3 = (
            nn.Conv2d(width // 2, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.pool = nn.AvgPool2d(2)
        self.layer1 = _layer(width, width, blocks[0], 1)
        self.layer2 = _layer(GROWN * width, 2 * width, blocks[1], 2)
        self.layer3 = _layer(2 * GROWN * width, 4 * width, blocks[2], 2)
        self.layer4 = _layer(4 * GROWN * width, 8 * width, blocks[3], 2)
        self.attnpool = AttentionPool(
            (side // SHRUNK) ** 2, 8 * GROWN * width, width // 2, features
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.attnpool(self._map(x))
        return features

    def everywhere(self, x: Tensor) -> Tensor:
        """[B, 1 + P, D]: features of an image and, behind them, of its patches."""
        return self.attnpool.everywhere(self._map(x))

    def _map(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        x = relu(self.bn2(self.conv2(x)))
        x = self.pool(relu(self.bn3(self.conv3(x))))
        for part in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = part(x)
        return x


def _layer(given: int, inside: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(given, inside, stride)
    return nn.Sequential(first, *(Block(GROWN * inside, inside, 1) for _ in range(blocks - 1)))
