"""Layers, losses and operations of torch, each in a small network: right, flagged or refused.

The numbers are compared with `by_differences`, whose module imports nothing of ours.
A number that is neither flagged nor refused must be right to 1e-6.
A flagged one holds nan, or is right, or the flag says what else it is.
Flags and refusals name the layer.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

from analysis.theory.own_model import analyse
from tests.helpers.data import generator, normal
from tests.helpers.differences import STEPS, by_differences

pytestmark = pytest.mark.usefixtures("no_search_for_noise")
ALPHA = 0.01


class Around(nn.Module):
    """A linear map and tanh, followed by an operation or a layer.

    The linear map goes (5, 4) -> (5, 6), and its outputs are reshaped to what the operation takes.
    """

    def __init__(self, middle, shape=(5, 6)):
        super().__init__()
        self.first, self.middle, self.shape = nn.Linear(4, 6), middle, shape

    def forward(self, x):
        return self.middle(self.first(x).tanh().reshape(self.shape))


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def weighted(outputs, _):
    """Return a loss with derivatives of all orders in all outputs."""
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    y = outputs.flatten()
    return (y.sin() * torch.arange(1, len(y) + 1, dtype=y.dtype).cos()).sum() + y.square().mean()


def square(h):
    """Turn (5, 6) into (5, 3, 3), well conditioned and symmetric positive."""
    a = torch.stack([h[:, :3], h[:, 3:], h[:, ::2]], 1)
    return a @ a.mT + 2 * torch.eye(3, dtype=h.dtype)


def general(h):
    """Turn (5, 6) into (5, 3, 3), well conditioned and not symmetric."""
    return torch.stack([h[:, :3], h[:, 3:], h[:, ::2]], 1) / 2 + 2 * torch.eye(3, dtype=h.dtype)


TARGET = normal(5, 6, seed=8)
LABELS = torch.randint(6, (5,), generator=generator(2))
SIGNS = (2 * torch.randint(2, (5, 6), generator=generator(3)) - 1).double()
B = normal(3, 2, seed=9)

OPERATIONS = {
    # Elementary and activations.
    **{
        name: getattr(F, name)
        for name in (
            "relu",
            "leaky_relu",
            "elu",
            "gelu",
            "silu",
            "mish",
            "softplus",
            "hardswish",
            "hardsigmoid",
            "tanh",
        )
    },
    "glu": lambda h: F.glu(h, -1),
    "softmax": lambda h: F.softmax(h, -1),
    "logsumexp": lambda h: h.logsumexp(-1),
    "cumprod": lambda h: (h / 4 + 1).cumprod(-1),
    "sort": lambda h: h.sort(-1).values,
    "topk": lambda h: h.topk(2, -1).values,
    "median": lambda h: h.median(-1).values,
    "var": lambda h: h.var(-1),
    "where": lambda h: torch.where(h > 0, h**3, h),
    "clamp": lambda h: h.clamp(-0.4, 0.4),
    "lgamma": lambda h: (h + 2).lgamma(),
    "atan2": lambda h: torch.atan2(h, h.roll(1, -1) + 2),
    "xlogy": lambda h: torch.xlogy(h, h + 2),
    "fft": lambda h: torch.fft.rfft(h, dim=-1).abs().square(),
    "norm of rows": lambda h: h.norm(dim=-1),
    "square of the norm of differences of 0": lambda h: torch.dist(h, h + 0) ** 2 + h.abs() ** 2,
    "normalize": lambda h: F.normalize(h, dim=-1),
    "cosine_similarity": lambda h: F.cosine_similarity(h, TARGET, dim=-1),
    "pairwise_distance": lambda h: F.pairwise_distance(h, TARGET),
    "cdist": lambda h: torch.cdist(h, TARGET),
    "cdist of itself, by products": lambda h: torch.cdist(
        h, h.roll(1, 0) + 1, compute_mode="use_mm_for_euclid_dist"
    ),
    "pdist": F.pdist,
    "bicubic interpolation": lambda h: F.interpolate(
        h.reshape(1, 1, 5, 6), scale_factor=2, mode="bicubic"
    ),
    "grid_sample": lambda h: F.grid_sample(
        h.reshape(1, 1, 5, 6), h[:, :2].reshape(1, 1, 5, 2), align_corners=False
    ),
    "scatter_add": lambda h: torch.zeros(5, 6, dtype=h.dtype).scatter_add(
        1, LABELS[:, None].expand(5, 6), h
    ),
    "in-place": lambda h: h.clone().mul_(h).add_(1).sqrt_(),
    "setitem": lambda h: _with_entry(h),
    "attention": lambda h: F.scaled_dot_product_attention(
        *(h.reshape(1, 1, 5, 6) * t for t in (1, 2, 3))
    ),
    # Norms under every name.
    "F.layer_norm": lambda h: F.layer_norm(h, (6,)),
    "torch.layer_norm": lambda h: torch.layer_norm(h, (6,)),
    "torch.native_layer_norm": lambda h: torch.native_layer_norm(h, (6,), None, None, 1e-5)[0],
    "aten.layer_norm": lambda h: torch.ops.aten.layer_norm(h, (6,)),
    "aten.native_layer_norm.default": lambda h: torch.ops.aten.native_layer_norm.default(
        h, (6,), None, None, 1e-5
    )[0],
    "torch.batch_norm": lambda h: torch.batch_norm(
        h, None, None, None, None, True, 0.1, 1e-5, False
    ),
    "torch.native_batch_norm": lambda h: torch.native_batch_norm(
        h, None, None, None, None, True, 0.1, 1e-5
    )[0],
    "torch._native_batch_norm_legit": lambda h: torch._native_batch_norm_legit(
        h, None, None, True, 0.1, 1e-5
    )[0],
    "aten.batch_norm": lambda h: torch.ops.aten.batch_norm(
        h, None, None, None, None, True, 0.1, 1e-5, False
    ),
    "torch.instance_norm": lambda h: torch.instance_norm(
        h[:, None], None, None, None, None, True, 0.1, 1e-5, False
    ),
    "torch.group_norm": lambda h: torch.group_norm(h, 2),
    "torch.native_group_norm": lambda h: torch.native_group_norm(h, None, None, 5, 6, 1, 2, 1e-5)[
        0
    ],
    "F.rms_norm": lambda h: F.rms_norm(h, (6,)),
    "F.local_response_norm": lambda h: F.local_response_norm(h[:, :, None], 3),
    "weight_norm as a function": lambda h: torch._weight_norm(h, h[:, :1] + 2, 0),
    # Linear algebra under every name.
    "linalg.solve": lambda h: torch.linalg.solve(general(h), B),
    "linalg.inv": lambda h: torch.linalg.inv(general(h)),
    "Tensor.inverse": lambda h: general(h).inverse(),
    "linalg.det": lambda h: torch.linalg.det(general(h)),
    "logdet": lambda h: square(h).logdet(),
    "slogdet": lambda h: torch.linalg.slogdet(general(h)).logabsdet,
    "linalg.cholesky": lambda h: torch.linalg.cholesky(square(h)),
    "cholesky_inverse": lambda h: torch.cholesky_inverse(torch.linalg.cholesky(square(h))),
    "cholesky_solve": lambda h: torch.cholesky_solve(
        B.expand(5, 3, 2), torch.linalg.cholesky(square(h))
    ),
    "solve_triangular": lambda h: torch.linalg.solve_triangular(general(h).tril(), B, upper=False),
    "lstsq": lambda h: torch.linalg.lstsq(general(h), B.expand(5, 3, 2)).solution,
    "pinv": lambda h: torch.linalg.pinv(general(h)),
    "qr": lambda h: torch.linalg.qr(general(h)).R,
    "eigh": lambda h: torch.linalg.eigh(square(h)).eigenvalues,
    "eigvalsh": lambda h: torch.linalg.eigvalsh(square(h)),
    "svdvals": lambda h: torch.linalg.svdvals(general(h)),
    "nuclear norm": lambda h: torch.linalg.matrix_norm(general(h), "nuc"),
    "ldl_factor": lambda h: torch.linalg.ldl_factor(square(h))[0],
    "matrix_exp": lambda h: torch.linalg.matrix_exp(general(h) / 2),
    "matrix_power, negative": lambda h: torch.linalg.matrix_power(general(h), -2),
    "lu_solve": lambda h: torch.linalg.lu_solve(
        *torch.linalg.lu_factor(general(h)), B.expand(5, 3, 2)
    ),
    "tensorinv": lambda h: torch.linalg.tensorinv(general(h)[0], ind=1),
    "householder_product": lambda h: torch.linalg.householder_product(general(h), h[:, :3]),
    # Losses.
    "mse_loss": lambda h: F.mse_loss(h, TARGET),
    "l1_loss": lambda h: F.l1_loss(h, 3 * SIGNS),
    "smooth_l1_loss": lambda h: F.smooth_l1_loss(h, TARGET),
    "huber_loss": lambda h: F.huber_loss(h, TARGET),
    "cross_entropy": lambda h: F.cross_entropy(h, LABELS),
    "kl_div": lambda h: F.kl_div(h.log_softmax(-1), TARGET.softmax(-1), reduction="batchmean"),
    "binary_cross_entropy": lambda h: F.binary_cross_entropy(h.sigmoid(), TARGET.sigmoid()),
    "binary_cross_entropy_with_logits": lambda h: F.binary_cross_entropy_with_logits(
        h, TARGET.sigmoid()
    ),
    "gaussian_nll_loss": lambda h: F.gaussian_nll_loss(h, TARGET, h.exp()),
    "soft_margin_loss": lambda h: F.soft_margin_loss(h, SIGNS),
    "hinge_embedding_loss": lambda h: F.hinge_embedding_loss(h, SIGNS),
    "margin_ranking_loss": lambda h: F.margin_ranking_loss(h, 3 * SIGNS, SIGNS),
    "multi_margin_loss": lambda h: F.multi_margin_loss(h, LABELS),
    "multilabel_margin_loss": lambda h: F.multilabel_margin_loss(h, F.one_hot(LABELS, 6)),
    "multilabel_soft_margin_loss": lambda h: F.multilabel_soft_margin_loss(h, (SIGNS + 1) / 2),
    "triplet_margin_loss": lambda h: F.triplet_margin_loss(h, TARGET, TARGET.roll(1, 0)),
    "cosine_embedding_loss": lambda h: F.cosine_embedding_loss(h, TARGET, SIGNS[:, 0]),
    "ctc_loss": lambda h: F.ctc_loss(
        h.log_softmax(-1)[:, None], torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2])
    ),
}


def _with_entry(h):
    copy = h.clone()
    copy[:, 0] = h[:, 1] ** 2
    return copy


class Parametrized(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner = wrap(nn.Linear(6, 3))

    def forward(self, h):
        return self.inner(h)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.inner = kind(3, 2, batch_first=True, **options)

    def forward(self, h):
        return self.inner(h)[0]


class Packed(Recurrent):
    def forward(self, h):
        return self.inner(pack_padded_sequence(h, torch.tensor([2, 2, 1, 1, 1]), batch_first=True))[
            0
        ].data


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, h):
        return self.inner(h, h, h)[0]


IMAGE, SEQUENCE = (2, 3, 5, 1), (5, 2, 3)
LAYERS = {
    "LayerNorm": (lambda: nn.LayerNorm(6), (5, 6)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (5, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), (5, 6)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(2, affine=True), (5, 2, 3)),
    "RMSNorm": (lambda: nn.RMSNorm(6), (5, 6)),
    "PReLU": (nn.PReLU, (5, 6)),
    "Bilinear": (lambda: _Twice(nn.Bilinear(6, 6, 2)), (5, 6)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 2), (5, 2, 3)),
    "Conv2d": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 1, 5, 6)),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 1, 5, 3, 2)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(1, 2, 2, stride=2), (1, 1, 5, 6)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (1, 1, 5, 6)),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), (1, 1, 5, 6)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), (1, 1, 5, 6)),
    "GRU": (lambda: Recurrent(nn.GRU, bidirectional=True), SEQUENCE),
    "LSTM": (lambda: Recurrent(nn.LSTM, num_layers=2), SEQUENCE),
    "LSTM with projections": (lambda: Recurrent(nn.LSTM, proj_size=1), SEQUENCE),
    "LSTM of packed sequences": (lambda: Packed(nn.LSTM), SEQUENCE),
    "MultiheadAttention": (SelfAttention, (1, 5, 6)),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(
            6, 2, 4, dropout=0.0, activation="gelu", batch_first=True
        ),
        (1, 5, 6),
    ),
    "TransformerDecoderLayer": (
        lambda: _Twice(nn.TransformerDecoderLayer(6, 2, 4, dropout=0.0)),
        (5, 1, 6),
    ),
    "parametrizations.weight_norm": (lambda: Parametrized(parametrizations.weight_norm), (5, 6)),
    "utils.weight_norm": (lambda: Parametrized(_old_weight_norm), (5, 6)),
    "parametrizations.orthogonal": (lambda: Parametrized(parametrizations.orthogonal), (5, 6)),
    "parametrizations.spectral_norm, evaluation": (
        lambda: Parametrized(parametrizations.spectral_norm).eval(),
        (5, 6),
    ),
}


class _Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, h):
        return self.inner(h, h.flip(0))


def _old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


def network_of(name):
    torch.manual_seed(0)
    if name in OPERATIONS:
        return Around(Function(OPERATIONS[name])).double()
    make, shape = LAYERS[name]
    return Around(make(), shape).double()


def copies_of(name):
    """Return a function that makes the network again.

    It copies the network where it can, as seeding torch takes longer than all else.
    """
    network = network_of(name)
    return (
        (lambda: network_of(name))
        if name == "utils.weight_norm"
        else (lambda: copy.deepcopy(network))
    )


def pairs(seed=0):
    x = normal(2, 5, 4, seed=seed)
    return [(x[i], torch.zeros(1, dtype=x.dtype)) for i in range(2)]


def wrong_numbers(found, make, loss, minibatches):
    """Return the finite numbers that disagree with differences at every step size.

    The limit is 1e-6 of a number's size or of its natural size.
    """
    wrong = None
    for step in STEPS:
        apart = _apart(found, by_differences(make, loss, minibatches, found.alpha, step))
        wrong = {
            name: error
            for name, error in apart.items()
            if error > 1e-6 and (wrong is None or name in wrong)
        }
        if not wrong:
            break
    return wrong


def _apart(found, expected):
    d, unit, g = expected.direction, expected.sizes["unit"], expected.sizes["g"]
    a = found.alpha
    compared = {
        "g_bar_1": (found.g_bar[0] @ d, expected.g_bar[0], g),
        "g_bar_2": (found.g_bar[1] @ d, expected.g_bar[1], g),
        "exact g_2": (found.exact[1], expected.g_2, g),
        "exact MAML": (found.exact[2] @ d, expected.maml, g),
        "order 1 of g_2": (found.terms[1, 1] / a, expected.g_2_terms[0], g / unit),
        "order 2 of g_2": (found.terms[1, 2] / a**2, expected.g_2_terms[1], g / unit**2),
        "order 1 of MAML": (found.terms[2, 1] @ d / a, expected.maml_terms[0], g / unit),
        "order 2 of MAML": (found.terms[2, 2] @ d / a**2, expected.maml_terms[1], g / unit**2),
    }
    apart = {}
    for name, (ours, theirs, natural) in compared.items():
        theirs = torch.as_tensor(theirs, dtype=torch.float64)
        held = bool(ours.isfinite().all())  # otherwise the number is withheld
        apart[name] = (
            float((ours - theirs).norm()) / max(float(theirs.norm()), natural) if held else 0.0
        )
    return apart


# Torch has no second derivative in any mode; the error names the layer.
REFUSED = {
    "hardsigmoid",
    "ldl_factor",
    "cdist",
    "pdist",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "ctc_loss",
}
# Torch's forward mode is wrong or the loss jumps; the flag names the function and the layer.
FLAGGED = {
    "linalg.solve": "linalg_solve",
    "linalg.det": "linalg_det",
    "logdet": "logdet",
    "slogdet": "linalg_slogdet",
    "cholesky_inverse": "cholesky_inverse",
    "householder_product": "linalg_householder_product",
    "parametrizations.orthogonal": "linalg_householder_product",
}
JUMPS = {"parametrizations.orthogonal"}  # it casts a diagonal that SGD never moves to int


@pytest.mark.parametrize("name", [*OPERATIONS, *LAYERS])
def test_no_number_is_wrong_without_a_word(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in REFUSED:
            with pytest.raises(
                NotImplementedError, match=r"found none in torch for .*'middle' \(Function\)"
            ):
                analyse(network_of(name), weighted, pairs(), ALPHA, most_orders=0)
            return
        found = analyse(network_of(name), weighted, pairs(), ALPHA, most_orders=0)
    wrong = wrong_numbers(found, copies_of(name), weighted, pairs())
    if name in JUMPS:
        assert wrong and "the slope of the loss jumps at this very point" in " ".join(
            found.distrust
        )
    else:
        assert not wrong
    assert not found.withheld
    if name in FLAGGED:
        assert f"{FLAGGED[name]} in 'middle" in found.distrust[0]
    else:
        assert found.distrust == ()


def test_the_corpus_is_as_large_as_promised():
    assert len(OPERATIONS) + len(LAYERS) >= 110
