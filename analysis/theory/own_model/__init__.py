"""Section 5.1 on a model of one's own: how well the series describes its gradients.

`analyse` takes a network, a loss and minibatches of one task. It turns them into losses of one flat
vector, and hands these to the theory. The results are measured (k steps of SGD as they are),
predicted (the series in alpha) and compared. Each quantity is checked against channels: other ways
to compute it that share no differentiation rule with it.

In reading order: `losses` (from a model to losses), `keeping` (the caller's model stays as it was),
`loops` (SGD, MAML, and two ways to derivatives), `analysing` (the quantities), `quotients` and
`certify` (the channels), `locate` (the layer at fault), `analysis` (the results); `trees`,
`watching` and `checks` serve these.
"""

from analysis.theory.own_model.analysing import analyse
from analysis.theory.own_model.analysis import Analysis

__all__ = ["Analysis", "analyse"]
