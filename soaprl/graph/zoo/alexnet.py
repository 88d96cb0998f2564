"""AlexNet in a single tower (Krizhevsky 2014, "One weird trick"), 256 maps in the last two convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class AlexNet(nn.Module):
    """Five convolutions, three max poolings, three linear layers and the loss: the paper's 12 layers.

    `width` is the number of maps of the first convolution; the other sizes keep their proportion to it.
    """

    def __init__(self, *, num_classes: int, width: int, linear_width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=11, stride=4, padding=2)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv2 = nn.Conv2d(width, 3 * width, kernel_size=5, padding=2)
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.conv3 = nn.Conv2d(3 * width, 6 * width, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(6 * width, 4 * width, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(4 * width, 4 * width, kernel_size=3, padding=1)
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.dropout6 = nn.Dropout(dropout)
        self.linear6 = nn.Linear(4 * width * 6 * 6, linear_width)
        self.dropout7 = nn.Dropout(dropout)
        self.linear7 = nn.Linear(linear_width, linear_width)
        self.linear8 = nn.Linear(linear_width, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss for `images` of shape (batch, 3, 224, 224) and `labels` of shape (batch,)."""
        x = self.pool1(functional.relu(self.conv1(images)))
        x = self.pool2(functional.relu(self.conv2(x)))
        x = functional.relu(self.conv4(functional.relu(self.conv3(x))))
        x = self.pool5(functional.relu(self.conv5(x))).flatten(1)  # (batch, maps * 6 * 6)
        x = functional.relu(self.linear6(self.dropout6(x)))
        x = functional.relu(self.linear7(self.dropout7(x)))
        return functional.cross_entropy(self.linear8(x), labels)


def alexnet(
    batch_size: int,
    *,
    num_classes: int = 1000,
    width: int = 64,
    linear_width: int = 4096,
    dropout: float = 0.5,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """AlexNet, images of shape (batch, 3, 224, 224) and labels of shape (batch,)."""
    model = AlexNet(num_classes=num_classes, width=width, linear_width=linear_width, dropout=dropout)
    images = torch.randn(batch_size, 3, 224, 224)
    return model, (images, torch.randint(num_classes, (batch_size,)))
