"""Error rates of the judge, and the fewest seeds that it judges."""

LEAST_SEEDS = 5
# One-sided error of the first look, and of the second; every further look spends half of the one
# before. The sums are 0.0245 and 0.016.
SUPPORT_ERROR, REFUTE_ERROR, LATER_ERROR = 0.0185, 0.01, 0.003
CONTROL_ERROR = 0.025


def spent(first: float, look: int) -> float:
    """Return the error that a look may make.

    It is `first` at the first look, then LATER_ERROR, half of that, a quarter, and so on.
    """
    return first if look == 1 else LATER_ERROR / 2 ** (look - 2)
