"""Sizes and padding of "same" convolutions and pooling, as TensorFlow has them."""

KERNEL = 3  # all convolutions of the paper are 3 x 3


def same_size(size: int, stride: int) -> int:
    """Return the length of the output of TensorFlow's "same" convolution or pooling."""
    return -(-size // stride)


def same_padding(size: int, stride: int, window: int = KERNEL) -> tuple[int, int]:
    """Return the zeros that "same" pads before and after.

    The odd one goes after, hence (0, 1) on even sizes at stride 2.
    """
    total = max((same_size(size, stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2
