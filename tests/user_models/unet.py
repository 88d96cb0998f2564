"""A U-Net: skip connections from the way down to the way up, both kinds of upsampling."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Double(nn.Module):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.down1 = Double(3, 16)
        self.down2 = Double(16, 32)
        self.bottom = Double(32, 64)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.merge2 = Double(64, 32)
        self.up1 = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge1 = Double(48, 16)
        self.head = nn.Conv2d(16, num_classes, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        a = self.down1(images)
        b = self.down2(functional.max_pool2d(a, 2))
        c = self.bottom(functional.max_pool2d(b, 2))
        b = self.merge2(torch.cat([b, self.up2(c)], dim=1))
        a = self.merge1(torch.cat([a, self.up1(b)], dim=1))
        return functional.cross_entropy(self.head(a), labels)


def factory(batch_size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    images = torch.randn(batch_size, 3, 32, 32)
    return UNet(num_classes=5), (images, torch.randint(5, (batch_size, 32, 32)))
