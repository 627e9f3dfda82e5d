"""The Fisher information of each likelihood, against curvlinops and laplace-torch."""

import pytest
import torch
from torch import nn

from lifelong.core import (
    Categorical,
    Gaussian,
    fisher_diagonal,
)

from .test_fisher_likelihoods import LIKELIHOODS, NETWORKS, N, inputs, targets

pytestmark = pytest.mark.usefixtures("double")


def loss_of(kind: str) -> tuple[nn.Module, float]:
    """A loss of torch summed over labels and examples, and its curvature over that of −log p."""
    if kind == "categorical":
        return nn.CrossEntropyLoss(reduction="sum"), 1.0
    if kind == "gaussian":
        return nn.MSELoss(reduction="sum"), 2 * 0.49
    if kind == "poisson":
        return nn.PoissonNLLLoss(reduction="sum"), 1.0
    return nn.BCEWithLogitsLoss(reduction="sum"), 1.0


@pytest.mark.parametrize("kind", LIKELIHOODS)
@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_curvlinops_has_the_same_diagonal(kind: str, labels: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    if (kind, labels) == ("poisson", "empirical"):
        pytest.skip("its EFLinearOperator has no Poisson loss")
    network, x, y = NETWORKS["linear"](), inputs("linear"), targets(kind)
    loss, scale = loss_of(kind)
    params = [p for p in network.parameters() if p.requires_grad]
    operator = {
        "exact": curvlinops.GGNLinearOperator,
        "empirical": curvlinops.EFLinearOperator,
    }[labels](network, loss, params, [(x, y)])
    size = sum(p.numel() for p in params)
    theirs = torch.as_tensor(operator @ torch.eye(size)).diagonal()
    scale = scale if labels == "exact" else scale**2
    came = fisher_diagonal(
        network, [(x, y)], labels=labels, likelihood=LIKELIHOODS[kind], threshold=0
    )
    ours = torch.cat([f.flatten() for f in came.values()])
    torch.testing.assert_close(scale * N * ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_laplace_torch_has_the_same_diagonal(kind: str) -> None:
    laplace = pytest.importorskip("laplace")
    network, x, y = NETWORKS["linear"](), inputs("linear"), targets(kind)
    task = {"categorical": "classification", "gaussian": "regression"}[kind]
    fitted = laplace.Laplace(network, task, "all", "diag")
    fitted.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2))
    likelihood = Gaussian() if kind == "gaussian" else Categorical()
    came = fisher_diagonal(network, [(x, y)], likelihood=likelihood, threshold=0)
    ours = torch.cat([f.flatten() for f in came.values()])
    torch.testing.assert_close(N * ours, fitted.H, rtol=1e-9, atol=1e-12)
