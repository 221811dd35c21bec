"""Do Gaussian experts help on photographs and drawings? The question of gaussian.py.

    FEDEXPERTS_DATA=FOLDER python benchmarks/gaussian_photos.py            goes on where it stopped
    python benchmarks/gaussian_photos.py --print                           the tables alone

PACS: 20 clients in four styles, few pictures a class or Dirichlet(0.3) over classes; Omniglot: each
client's drawings are by one hand. docs/data.md says where the pictures come from.
"""

from functools import partial

from gaussian import GATE, NAMES, NO_GROUPS, ONE_MODEL, WIDE, Setting, Values, main

PROBE: Values = {
    "name": "linear-probe",
    "classifier": "efficientnet-lite0",
    "precision": "bf16",
}
photos = partial(Setting, probe=PROBE)
FEW = "configs/benchmark/pacs-few/gaussian-experts.toml"
SHARES = "configs/benchmark/pacs/gaussian-experts.toml"
OMNIGLOT = "configs/benchmark/omniglot/gaussian-experts.toml"
SETTINGS = {
    "PACS, 4 pictures a class": photos(FEW, {"shots": 4}, lacks=[GATE]),
    "PACS, Dirichlet": photos(SHARES, lacks=[GATE]),
    "PACS, Dirichlet, tested on everybody's": photos(
        SHARES, {"meets": "everybody"}, WIDE, lacks=NO_GROUPS
    ),
    "PACS, 1 picture a class": photos(FEW, {"shots": 1}, lacks=[GATE, *ONE_MODEL]),
    "PACS, 16 pictures a class": photos(FEW, {"shots": 16}, lacks=[GATE, *ONE_MODEL]),
    "Omniglot, 5 drawings a class": photos(OMNIGLOT, {"shots": 5}, lacks=[GATE, NAMES, *ONE_MODEL]),
    "Omniglot, 2 drawings a class": photos(OMNIGLOT, {"shots": 2}, lacks=[GATE, NAMES, *ONE_MODEL]),
}


if __name__ == "__main__":
    main(SETTINGS, __doc__ or "", "gaussian-photos")
