"""Inception-v3 without auxiliary classifier.

Szegedy et al. 2015, "Rethinking the Inception Architecture", table 1; channel counts of branches that the
paper leaves open are those of the released model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.errors import CaptureError


class Convolution(nn.Module):
    """A convolution with batch normalization and ReLU."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, outputs, height', width')."""
        return functional.relu(self.norm(self.conv(x)))


class Branches(nn.Module):
    """Runs its children on the same input and concatenates the channels of what they return."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, sum of the branches' channels, height', width')."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Makes the blocks of branches. All channel counts given are those of a first convolution with 32 maps.

    Attributes:
        width: Maps of the first convolution; the counts are scaled by `width` / 32.
    """

    width: int

    def scaled(self, channels: int) -> int:
        """The number of channels at this width."""
        return channels * self.width // 32

    def convolution(
        self,
        channels: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> Convolution:
        """A scaled convolution."""
        return Convolution(self.scaled(channels), self.scaled(outputs), kernel, stride, padding)

    def _row(self, channels: int, outputs: int, kernel: int) -> Convolution:
        return self.convolution(channels, outputs, (1, kernel), padding=(0, kernel // 2))

    def _column(self, channels: int, outputs: int, kernel: int) -> Convolution:
        return self.convolution(channels, outputs, (kernel, 1), padding=(kernel // 2, 0))

    def _pooled(self, channels: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), self.convolution(channels, outputs, 1))

    def block_35(self, channels: int, pooled: int) -> Branches:
        """Figure 5: the 5 x 5 and the double 3 x 3 branch, at 35 x 35."""
        return Branches(
            conv1=self.convolution(channels, 64, 1),
            conv5=nn.Sequential(self.convolution(channels, 48, 1), self.convolution(48, 64, 5, padding=2)),
            conv3=nn.Sequential(
                self.convolution(channels, 64, 1),
                self.convolution(64, 96, 3, padding=1),
                self.convolution(96, 96, 3, padding=1),
            ),
            pool=self._pooled(channels, pooled),
        )

    def reduction_35(self, channels: int) -> Branches:
        """From 35 x 35 to 17 x 17."""
        return Branches(
            conv3=self.convolution(channels, 384, 3, stride=2),
            conv3_double=nn.Sequential(
                self.convolution(channels, 64, 1),
                self.convolution(64, 96, 3, padding=1),
                self.convolution(96, 96, 3, stride=2),
            ),
            pool=nn.MaxPool2d(3, stride=2),
        )

    def block_17(self, channels: int, inner: int) -> Branches:
        """Figure 6: 7 x 7 convolutions factorized in rows and columns, at 17 x 17."""
        return Branches(
            conv1=self.convolution(channels, 192, 1),
            conv7=nn.Sequential(
                self.convolution(channels, inner, 1), self._row(inner, inner, 7), self._column(inner, 192, 7)
            ),
            conv7_double=nn.Sequential(
                self.convolution(channels, inner, 1),
                self._column(inner, inner, 7),
                self._row(inner, inner, 7),
                self._column(inner, inner, 7),
                self._row(inner, 192, 7),
            ),
            pool=self._pooled(channels, 192),
        )

    def reduction_17(self, channels: int) -> Branches:
        """From 17 x 17 to 8 x 8."""
        return Branches(
            conv3=nn.Sequential(self.convolution(channels, 192, 1), self.convolution(192, 320, 3, stride=2)),
            conv7=nn.Sequential(
                self.convolution(channels, 192, 1),
                self._row(192, 192, 7),
                self._column(192, 192, 7),
                self.convolution(192, 192, 3, stride=2),
            ),
            pool=nn.MaxPool2d(3, stride=2),
        )

    def block_8(self, channels: int) -> Branches:
        """Figure 7: expanded outputs, at 8 x 8."""
        return Branches(
            conv1=self.convolution(channels, 320, 1),
            conv3=nn.Sequential(
                self.convolution(channels, 384, 1),
                Branches(row=self._row(384, 384, 3), column=self._column(384, 384, 3)),
            ),
            conv3_double=nn.Sequential(
                self.convolution(channels, 448, 1),
                self.convolution(448, 384, 3, padding=1),
                Branches(row=self._row(384, 384, 3), column=self._column(384, 384, 3)),
            ),
            pool=self._pooled(channels, 192),
        )


class Inception(nn.Module):
    """Convolutions from 299 x 299 down to 35 x 35, eleven blocks of branches, one linear layer."""

    def __init__(self, *, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        blocks = Blocks(width=width)
        self.conv1 = Convolution(3, width, 3, stride=2)
        self.conv2 = blocks.convolution(32, 32, 3)
        self.conv3 = blocks.convolution(32, 64, 3, padding=1)
        self.pool3 = nn.MaxPool2d(3, stride=2)
        self.conv4 = blocks.convolution(64, 80, 1)
        self.conv5 = blocks.convolution(80, 192, 3)
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.mixed35_1 = blocks.block_35(192, 32)
        self.mixed35_2 = blocks.block_35(256, 64)
        self.mixed35_3 = blocks.block_35(288, 64)
        self.reduce35 = blocks.reduction_35(288)
        self.mixed17_1 = blocks.block_17(768, 128)
        self.mixed17_2 = blocks.block_17(768, 160)
        self.mixed17_3 = blocks.block_17(768, 160)
        self.mixed17_4 = blocks.block_17(768, 192)
        self.reduce17 = blocks.reduction_17(768)
        self.mixed8_1 = blocks.block_8(1280)
        self.mixed8_2 = blocks.block_8(2048)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(blocks.scaled(2048), num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss for `images` of shape (batch, 3, size, size) and `labels` of shape (batch,)."""
        x = self.pool3(self.conv3(self.conv2(self.conv1(images))))
        x = self.pool5(self.conv5(self.conv4(x)))
        x = self.mixed35_3(self.mixed35_2(self.mixed35_1(x)))
        x = self.mixed17_2(self.mixed17_1(self.reduce35(x)))
        x = self.mixed17_4(self.mixed17_3(x))
        x = self.mixed8_2(self.mixed8_1(self.reduce17(x)))
        return functional.cross_entropy(self.linear(self.dropout(self.pool(x).flatten(1))), labels)


def inception_v3(
    batch_size: int,
    *,
    num_classes: int = 1000,
    width: int = 32,
    image_size: int = 299,
    dropout: float = 0.5,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Inception-v3, images of shape (batch, 3, image_size, image_size) and labels of shape (batch,)."""
    if width % 2:
        raise CaptureError(f"expected an even number as width of Inception-v3, found {width}: change it")
    if image_size < 75:
        raise CaptureError(
            f"expected an image size of at least 75, found {image_size}: smaller ones vanish on the way"
        )
    images = torch.randn(batch_size, 3, image_size, image_size)
    model = Inception(num_classes=num_classes, width=width, dropout=dropout)
    return model, (images, torch.randint(num_classes, (batch_size,)))
