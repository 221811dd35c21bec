"""Options that several sources have, with what they mean and what they may be. This room knows no data."""

from typing import Annotated

from pydantic import Field

Shots = Annotated[int, Field(description="at most so many training examples a class and client; 0: all", ge=0)]
Valid = Annotated[float, Field(description="share of a client's examples to validate on", ge=0, lt=1)]
Test = Annotated[float, Field(description="share of a client's examples to test on", gt=0, lt=1)]
Reserve = Annotated[
    int, Field(description="labelled examples a class that the server holds and no client does; 0: none", ge=0)
]
ReserveAlpha = Annotated[
    float,
    Field(description="Dirichlet over labels in the reserve; small: skewed; 0: uniform", ge=0, allow_inf_nan=False),
]
