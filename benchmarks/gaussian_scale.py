"""What a thousand clients cost a server of Gaussian experts: seconds and memory.

    python benchmarks/gaussian_scale.py [--clients 1000] [--width 512] [--classes 100]

Features are drawn, about class means that clients share but for an offset. Printed are CPU
seconds of one client for its expert, of the server for what it keeps and for every blend (with one
mean a class, and with the 20 experts that add most), and the most memory that the process had.
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch
from torch.nn.functional import normalize

from fedexperts.learn import Examples, Learning, Local
from fedexperts.method import Given, Upload
from fedexperts.methods.gaussian import GaussianExperts
from fedexperts.model import Model
from fedexperts.tensors import Tensors, rng


class Features(Model):
    """A model that reads features, as a linear probe does."""

    def __init__(self, classes: int, width: int) -> None:
        self.classes, self.width = tuple(map(str, range(classes))), width
        self.initial = {"weight": torch.zeros(classes, width)}

    def logits(self, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
        return x @ tensors["weight"].T


def drawn(client: int, images: int, classes: int, width: int) -> Examples:
    """A client's features: most of its images are of a few classes."""
    means = torch.randn(classes, width, generator=rng(0, "means"))
    draw = rng(0, "client", client)
    shares = torch.rand(classes, generator=draw).pow(8)
    y = torch.multinomial(shares, images, replacement=True, generator=draw)
    offset = 0.3 * torch.randn(width, generator=draw)
    x = means[y] + offset + 2 * torch.randn(images, width, generator=draw)
    return Examples(normalize(x, dim=-1)[:, None], y)


def timed(what: str, act: Callable[[], object], times: int = 1) -> None:
    began = time.process_time()
    act()
    seconds = (time.process_time() - began) / times
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:52s} {seconds:8.2f} CPU s   {peak:5.2f} GiB at most so far", flush=True)


class Federation:
    """A server and what its clients told it, round after round."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.method = GaussianExperts(head="linear")
        self.model = Features(asked.classes, asked.width)
        empty = Examples(torch.empty(0, 1, asked.width), torch.empty(0, dtype=torch.int64))
        self.given = Given(self.model, empty, Learning(), 0)
        self.server = self.method.open(self.given)
        self.uploads: list[Upload] = []

    def tell(self) -> None:
        """Every client's upload; its features are forgotten at once."""
        local = Local({}, self.shared())
        self.uploads = []
        for client in range(self.asked.clients):
            own = drawn(client, self.asked.images, self.asked.classes, self.asked.width)
            said = self.method.observe(self.model, local, own)
            self.uploads.append(Upload(f"client-{client:04d}", said, len(own)))

    def shared(self) -> Tensors:
        sent = self.method.publish(self.server)
        return {name.removeprefix("global."): value for name, value in sent.items()}

    def merge(self) -> None:
        self.server = self.method.merge(self.given, self.server, self.uploads, 1)

    def blend(self, method: GaussianExperts) -> None:
        """Everybody's; each is thrown away as it would be sent."""
        for _ in method.blends(self.server, [upload.client for upload in self.uploads]):
            pass


def main() -> None:
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, default in (("clients", 1000), ("width", 512), ("classes", 100), ("images", 200)):
        reader.add_argument(f"--{option}", type=int, default=default)
    asked = reader.parse_args()
    federation = Federation(asked)
    print(
        f"{asked.clients} clients with {asked.images} images, D = {asked.width},"
        f" {asked.classes} classes, {torch.get_num_threads()} thread(s)"
    )
    timed("a client: sums of the first round, drawn", federation.tell, asked.clients)
    timed("server: the basis", federation.merge)
    timed("a client: its expert, drawn", federation.tell, asked.clients)
    timed("server: the pool, and what all share", federation.merge)
    linear = federation.method
    timed("server: blends, one mean a class", lambda: federation.blend(linear))
    some = GaussianExperts(experts=20)
    timed("server: blends of the 20 that add most, imagewise", lambda: federation.blend(some))


if __name__ == "__main__":
    main()
