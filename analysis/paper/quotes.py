"""Quotes of the authors' post on Reptile for each claim, word for word, with symbols as LaTeX.

The paper itself is never quoted. The claims report its contents and equations by section. `beyond`
marks what neither says.
"""


def quote(words: str) -> str:
    return f"The authors' post: “{words}”"


def beyond(words: str) -> str:
    return f"Beyond the paper: {words}"


JOINT = quote(
    "If $k=1$, this algorithm would correspond to ‘joint training’—performing SGD on the mixture "
    "of all tasks."
)
JOINT_LEARNS_LITTLE = quote(
    "While joint training can learn a useful initialization in some cases, it learns very little "
    "when zero-shot learning is not possible (e.g. when the output labels are randomly permuted)."
)
ADAM = quote(
    "As an alternative to the last step, we can treat $\\Phi - W$ as a gradient and plug it into a "
    "more sophisticated optimizer like Adam."
)
INNER_PRODUCT = quote(
    "We show that the Reptile update maximizes the inner product between gradients of different "
    "minibatches from the same task, corresponding to improved generalization."
)
OUTSIDE = quote(
    "This finding may have implications outside of the meta-learning setting for explaining the "
    "generalization properties of SGD."
)
SAME_TERMS = quote(
    "Our analysis suggests that Reptile and MAML perform a very similar update, including the same "
    "two terms with different weights."
)
SIMILAR = quote(
    "In our experiments, we show that Reptile and MAML yield similar performance on the Omniglot "
    "and Mini-ImageNet benchmarks for few-shot classification."
)
FASTER = quote(
    "Reptile also converges to the solution faster, since the update has lower variance."
)
MORE = quote("Including more gradients yields faster learning, due to variance reduction.")
G1 = quote(
    "Note that simply using $g_1$ (which corresponds to $k=1$) yields no progress as predicted for "
    "this task since zero-shot performance cannot be improved."
)
