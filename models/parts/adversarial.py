"""What adversarial translation is made of: a generator, a PatchGAN, their losses, and a buffer of earlier fakes.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Fakes kept of each kind.
BUFFER = 50


class Generator(nn.Module):
    """Encoder, residual blocks, decoder, with instance norm: images [B, C, H, W] in [-1, 1] to such images."""

    def __init__(self, channels: int, width: int, blocks: int, *, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normed(nn.Conv2d(channels, width, 7)),
            *_normed(nn.Conv2d(width, 2 * width, 3, 2, 1)),
            *_normed(nn.Conv2d(2 * width, 4 * width, 3, 2, 1)),
            *(_ResidualBlock(4 * width) for _ in range(blocks)),
            *_normed(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=1)),
            *_normed(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1)),
            nn.ReflectionPad2d(3),
            last := nn.Conv2d(width, channels, 7),
            nn.Tanh(),
        )
        _initialise(self)
        if residual:
            # New, it is the identity.
            nn.init.zeros_(last.weight)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The translated images; in residual form they may leave [-1, 1]."""
        out: Tensor = self.layers(images_BCHW)
        return images_BCHW + out if self.residual else out

    def change(self, images_BCHW: Tensor) -> Tensor:
        """Translated minus given images; in residual form without the rounding of a sum and a difference."""
        out: Tensor = self.layers(images_BCHW)
        return out if self.residual else out - images_BCHW


class Discriminator(nn.Module):
    """A 70x70 PatchGAN: one verdict a patch, [B, 1, h, w], 1 for real and 0 for fake, not squashed."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        leaky = nn.LeakyReLU(0.2)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            leaky,
            *(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.InstanceNorm2d(2 * width), leaky),
            *(nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.InstanceNorm2d(4 * width), leaky),
            *(nn.Conv2d(4 * width, 8 * width, 4, 1, 1), nn.InstanceNorm2d(8 * width), leaky),
            nn.Conv2d(8 * width, 1, 4, 1, 1),
        )
        _initialise(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The verdicts."""
        verdicts: Tensor = self.layers(images_BCHW)
        return verdicts


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU()


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normed(nn.Conv2d(channels, channels, 3)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def _initialise(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def is_real(verdicts: Tensor) -> Tensor:
    """LSGAN: the squared distances from 1."""
    return (verdicts - 1).square()


def is_fake(verdicts: Tensor) -> Tensor:
    """LSGAN: the squared distances from 0."""
    return verdicts.square()


class ReplayBuffer:
    """Earlier fakes, so that a discriminator does not forget what a generator used to do."""

    def __init__(self, size: int = BUFFER) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, fakes_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """As many images: each fake itself, or with probability 0.5 an earlier one whose place it takes."""
        chosen = []
        for fake in fakes_BCHW.detach():
            if len(self.images) < self.size:
                self.images.append(fake.clone())
                chosen.append(fake)
            elif float(torch.rand((), generator=generator)) < 0.5:
                place = int(torch.randint(self.size, (), generator=generator))
                chosen.append(self.images[place])
                self.images[place] = fake.clone()
            else:
                chosen.append(fake)
        return torch.stack(chosen)

    def draw(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """So many of the kept images, with replacement, which stay."""
        places = torch.randint(len(self.images), (count,), generator=generator)
        return [self.images[place] for place in places.tolist()]
