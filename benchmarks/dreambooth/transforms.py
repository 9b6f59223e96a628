"""What the script asks of torchvision's transforms, by Pillow and torch: torchvision itself may not fit the installed torch."""

import random

import numpy as np
import torch
from PIL import Image, ImageOps


def crop(image, top, left, height, width):
    return image.crop((left, top, left + width, top + height))


class InterpolationMode:
    BILINEAR = Image.Resampling.BILINEAR


class Resize:
    """The shorter side to ``size``."""

    def __init__(self, size, interpolation):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        factor = self.size / min(image.size)
        return image.resize([round(side * factor) for side in image.size], self.interpolation)


class CenterCrop:
    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        return ImageOps.fit(image, (self.size, self.size))


class RandomCrop:
    def __init__(self, size):
        self.size = size

    @staticmethod
    def get_params(image, size):
        height, width = size
        return random.randint(0, image.height - height), random.randint(0, image.width - width), height, width

    def __call__(self, image):
        return crop(image, *self.get_params(image, (self.size, self.size)))


class RandomHorizontalFlip:
    def __init__(self, p):
        self.p = p

    def __call__(self, image):
        return ImageOps.mirror(image) if random.random() < self.p else image


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, pixels):
        return (pixels - self.mean) / self.std


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image
