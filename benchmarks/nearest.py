"""How long the search for the nearest of many prompts takes, and whether it finds them.

    python benchmarks/nearest.py                  10,000 prompts of 16 KB, nine nearest of each
    python benchmarks/nearest.py --prompts 1000

Beside it stand the products of single precision that it cannot do without, of each pair once, and a
plain search: all distances in double precision, block by block, and a stable sort. The plain search
is of a tenth of the prompts, its time ten times that. CPU seconds of one thread; memory is what a
process held beyond the prompts, at most.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from fuse import measured
from torch import Tensor

from fedexperts.methods.nearest import nearest
from fedexperts.provenance import program

NUMBERS, NEAREST, BLOCK = 4096, 9, 100


def seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def products(prompts_NF: Tensor) -> None:
    """Of each block of vectors with itself and all that follow."""
    for first in range(0, len(prompts_NF), 512):
        torch.mm(prompts_NF[first : first + 512], prompts_NF[first:].T)


def plainly(prompts_NF: Tensor, rows: int) -> Iterator[list[int]]:
    """The nearest of the first rows; of equal distances, the first."""
    wide_NF = prompts_NF.double()
    for block in range(0, rows, BLOCK):
        apart_bN = torch.cdist(wide_NF[block : block + BLOCK], wide_NF)
        apart_bN[:, block:].fill_diagonal_(torch.inf)
        yield from apart_bN.argsort(stable=True)[:, :NEAREST].tolist()


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    reader.add_argument("--prompts", type=int, default=10_000)
    count: int = reader.parse_args().prompts
    print(program())
    torch.set_num_threads(1)
    prompts_NF = torch.randn(count, NUMBERS, generator=torch.Generator().manual_seed(0))
    rows, some = [*range(count)], max(BLOCK, count // 10)
    limit = seconds(lambda: products(prompts_NF))
    ours = seconds(lambda: nearest(prompts_NF, rows, NEAREST))
    plain = seconds(lambda: [*plainly(prompts_NF, some)]) * count / some
    held = measured(partial(nearest, prompts_NF, rows, NEAREST)).held
    print("| search | CPU s | times the products |\n|---|---|---|")
    for what, took in (("products alone", limit), ("ours", ours), ("plain, in fp64", plain)):
        print(f"| {what} | {took:.2f} | {took / limit:.1f} |")
    same = nearest(prompts_NF, rows, NEAREST)[:some].tolist() == [*plainly(prompts_NF, some)]
    print(f"\nThe first {some:,} have the {'same' if same else 'WRONG'} nearest in both.")
    print(f"Ours held {held / 1e6:.0f} MB; all distances in fp64 are {8 * count**2 / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
