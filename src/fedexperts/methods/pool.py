"""What is kept and sent of Gaussian experts, as tensors: the pool, a basis, a blend, triangles.

This room knows names and shapes; it does not know who sends what when.

Shapes: C classes, D feature width, P the width that experts have, N clients in the pool.
"""

from typing import Literal

import torch
from torch import Tensor

from ..learn import Examples
from ..model import Model, PromptModel
from ..tensors import Tensors, under
from . import discriminant
from .discriminant import Blend, Experts
from .head import head, projected

ROUNDING = 1e-4  # of a scatter's smallest eigenvalue, in its largest
RANK = 8  # directions of a low-rank scatter
SUMS = frozenset({"frequency", "sum", "moment"})
EXPERT = frozenset({"frequency", "mean", "scatter"})
Kind = Literal["full", "low-rank", "diagonal"]


def width_of(model: Model) -> int:
    """D; ValueError, with what to type, if a model's inputs are no frozen features."""
    if not model.width:
        raise ValueError(
            f"this method needs frozen features, and {type(model).__name__} trains its own;"
            ' set model.name = "prompted-clip" or "linear-probe"'
        )
    return model.width


def texts_of(model: Model) -> Tensor:
    """[C, D]: features of the classes' names; 0 where a model reads no texts."""
    if not isinstance(model, PromptModel):
        return torch.zeros(len(model.classes), model.width)
    with torch.no_grad():
        return model.texts(model.initial["context"])


def anchor_of(model: Model, basis: Tensors) -> Tensor:
    """[C, P]: the classes' texts about their mean."""
    texts_CP = projected(texts_of(model), basis)
    return texts_CP - texts_CP.mean(0)


def zero_shot(model: Model, basis: Tensors) -> Tensors:
    """The head whose class means are the classes' texts: cosines, where there is no basis."""
    mean_CP = projected(texts_of(model), basis).double()
    identity = torch.eye(mean_CP.shape[1], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    start = Blend(mean_CP, identity, one, torch.zeros(len(mean_CP)), mean_CP, one)
    return head(start, scale_of(model)) | basis


def scale_of(model: Model) -> float:
    """What cosines are multiplied by; 1 where a model reads no texts."""
    return model.scale if isinstance(model, PromptModel) else 1.0


def basis_of(server: Tensors) -> Tensors:
    shared = under(server, "global")
    return {name: shared[name] for name in ("basis", "middle") if name in shared}


def expert_of(model: Model, basis: Tensors, own: Examples) -> Experts:
    return discriminant.expert(projected(own.x[:, 0], basis), own.y, len(model.classes))


def said_of(expert: Experts, kind: Kind, examples: int) -> Tensors:
    """A client's expert as it leaves: by `examples`, so that how many count is not its own word."""
    scatter_PP = expert.scatter[0] / max(examples, 1)
    said = {
        "frequency": expert.count[0] / max(examples, 1),
        "mean": expert.mean[0],
        "scatter": _told(scatter_PP, kind),
    }
    return {name: value.float() for name, value in said.items()}


def said_shaped(classes: int, width: int, kind: Kind) -> Tensors:
    """Names and shapes of an expert as it leaves."""
    return {
        "frequency": torch.zeros(classes),
        "mean": torch.zeros(classes, width),
        "scatter": _told(torch.zeros(width, width), kind),
    }


def _told(scatter_PP: Tensor, kind: Kind) -> Tensor:
    """A triangle; or [RANK + 1, P], the main directions by the roots of their variances and the
    rest of the diagonal; or the diagonal alone.
    """
    if kind == "diagonal":
        return scatter_PP.diagonal()
    if kind == "full":
        return triangle(scatter_PP)
    values_P, vectors_PP = torch.linalg.eigh(scatter_PP)
    main_KP = (vectors_PP * values_P.clamp_min(0).sqrt()).T[-RANK:]
    rest_P = scatter_PP.diagonal() - main_KP.square().sum(0)
    return torch.cat([main_KP, rest_P.clamp_min(0)[None]])


def sums_of(x_nD: Tensor, y_n: Tensor, classes: int, examples: int) -> Tensors:
    """What a client says where sums are enough: each class's frequency and sum and the second
    moments of all, divided by its number of examples.
    """
    x_nD = x_nD.double()
    share_nC = torch.nn.functional.one_hot(y_n, classes).double() / max(examples, 1)
    said = {
        "frequency": share_nC.sum(0),
        "sum": share_nC.T @ x_nD,
        "moment": triangle(x_nD.T @ x_nD / max(examples, 1)),
    }
    return {name: value.float() for name, value in said.items()}


def sums_shaped(classes: int, width: int) -> Tensors:
    """Names and shapes of these sums."""
    return {
        "frequency": torch.zeros(classes),
        "sum": torch.zeros(classes, width),
        "moment": torch.zeros(triangular(width)),
    }


def basis_from(sums: Tensors, width: int) -> Tensors:
    """The main directions of everybody's features, and their mean."""
    weight = sums["frequency"].double().sum().clamp_min(discriminant.LITTLE)
    middle_D = sums["sum"].double().sum(0) / weight
    moment_DD = symmetric(sums["moment"], len(middle_D)) / weight
    basis_DP = discriminant.basis(moment_DD - torch.outer(middle_D, middle_D), width)
    return {"basis": basis_DP.float(), "middle": middle_D.float()}


def pile(sums: Tensors, examples: float, basis: Tensors) -> Experts:
    """Everybody's images as one expert behind a basis, from the mean of what clients said of
    sums.
    """
    count_C = sums["frequency"].double().clamp_min(0)
    sum_CP = sums["sum"].double()
    moment_PP = symmetric(sums["moment"], sum_CP.shape[1])
    mean_CP = sum_CP / count_C.clamp_min(discriminant.LITTLE)[:, None]
    scatter_PP = moment_PP - sum_CP.T @ mean_CP
    if basis:
        turn_DP = basis["basis"].double()
        mean_CP = (mean_CP - basis["middle"].double()) @ turn_DP * (count_C > 0)[:, None]
        scatter_PP = turn_DP.T @ scatter_PP @ turn_DP
    values_P, vectors_PP = torch.linalg.eigh(scatter_PP)
    scatter_PP = (vectors_PP * values_P.clamp_min(0)) @ vectors_PP.T
    return Experts(examples * count_C[None], mean_CP[None], examples * scatter_PP[None])


def row(said: Tensors, examples: int) -> Tensors:
    """An upload as the pool keeps it, with the examples that it may count for.

    It is a stranger's word: frequencies become some, and a scatter that can be none becomes one.
    """
    frequency_C = said["frequency"].clamp_min(0)
    frequency_C = frequency_C / frequency_C.sum().clamp_min(1)
    scatter = _possible(said["scatter"], said["mean"].shape[1])
    counted = torch.tensor(float(examples))
    return said | {"frequency": frequency_C, "scatter": scatter, "examples": counted}


def _possible(numbers: Tensor, width: int) -> Tensor:
    """A scatter as it is or, if it has directions of negative variance, without them."""
    if numbers.dim() == 2:
        return torch.cat([numbers[:-1], numbers[-1:].clamp_min(0)])
    if len(numbers) == width:
        return numbers.clamp_min(0)
    values_P, vectors_PP = torch.linalg.eigh(symmetric(numbers, width))
    if values_P[0] >= -ROUNDING * values_P[-1]:
        return numbers
    kept_PP = (vectors_PP * values_P.clamp_min(0)) @ vectors_PP.T
    return triangle(kept_PP).float()


def experts_of(server: Tensors) -> tuple[list[str], Experts]:
    """Clients' names, sorted, and their experts."""
    pool = under(server, "pool")
    names = sorted({name.partition(".")[0] for name in pool})
    return names, _stacked(pool, names, "")


def placebos_of(server: Tensors, names: list[str]) -> Experts | None:
    """What was told in the experts' place, of clients so named; None where they told the truth."""
    pool = under(server, "pool")
    if not names or f"{names[0]}.placebo.mean" not in pool:
        return None
    return _stacked(pool, names, "placebo.")


def _stacked(pool: Tensors, names: list[str], prefix: str) -> Experts:
    if not names:
        return Experts(*torch.zeros(3, 0, 0))

    def every(what: str) -> Tensor:
        return torch.stack([pool[f"{name}.{what}"] for name in names]).double()

    size_N, mean_NCP = every("examples"), every(f"{prefix}mean")
    P = mean_NCP.shape[2]
    scatter_NPP = torch.stack([symmetric(pool[f"{name}.{prefix}scatter"], P) for name in names])
    count_NC = size_N[:, None] * every(f"{prefix}frequency")
    return Experts(count_NC, mean_NCP, size_N[:, None, None] * scatter_NPP)


def about(blend: Blend) -> Tensors:
    """What of a blend is not in its head, and leaving an example out needs."""
    parts = {"mu": blend.mu, "count": blend.count, "average": blend.mean}
    return {name: value.float() for name, value in (parts | {"degrees": blend.degrees}).items()}


def blend_of(tensors: Tensors) -> Blend:
    """The inverse of `about`, from what a client was given."""
    parts = [
        tensors[name].double()
        for name in (
            "about.mu",
            "inverse",
            "variance",
            "about.count",
            "about.average",
            "about.degrees",
        )
    ]
    return Blend(*parts)


def triangular(width: int) -> int:
    return width * (width + 1) // 2


def triangle(matrix: Tensor) -> Tensor:
    """The upper triangle, row by row."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def symmetric(numbers: Tensor, width: int) -> Tensor:
    """The symmetric matrix of an upper triangle, of few directions and a diagonal, or of a
    diagonal alone.
    """
    if numbers.dim() == 2:
        main_KP = numbers[:-1].double()
        return main_KP.T @ main_KP + torch.diag(numbers[-1].double())
    if len(numbers) == width:
        return torch.diag(numbers.double())
    rows, columns = torch.triu_indices(width, width)
    matrix = torch.zeros(width, width, dtype=torch.float64)
    matrix[rows, columns] = matrix[columns, rows] = numbers.double()
    return matrix
