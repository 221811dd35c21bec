"""The door: everything wrong is said at once, every key says where it came from, every shipped
config is whole.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedexperts import config as door
from fedexperts.config import ConfigError, load
from fedexperts.config.checking import checked, meanings
from fedexperts.config.names import NAMED, PLAIN
from fedexperts.options import REQUIRED, option

DEMO = Path("configs/demo/pfedmoap.toml")


def write(folder, text, name="experiment.toml"):
    path = folder / name
    path.write_text(text)
    return path


def minimal(extra=""):
    sections = {"data": "digits-scanners", "model": "prompted-clip", "method": "pfedmoap"}
    return "name = 'x'\n" + "".join(f"[{s}]\nname = '{n}'\n" for s, n in sections.items()) + extra


def test_all_that_is_wrong_is_said_at_once_with_the_nearest_known_name(tmp_path):
    text = minimal("lamda = 3\nexperts = 'nine'\n[learning]\nrate = -1.0\n[methd]\n").replace(
        "'x'", "3"
    )
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text.replace("digits-scanners", "digit-scanner")))
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    for part in (
        "method.lamda: no such key; did you mean method.lam?",
        "method.experts = 'nine': input should be a valid integer",
        "learning.rate = -1.0: input should be greater than 0",
        "methd: no such section; did you mean method?",
        "name = 3",
        "digit-scanner: no such data; did you mean digits-scanners?",
    ):
        assert any(part in line for line in lines), part


def test_a_word_is_not_taken_for_a_number_nor_a_number_for_a_truth_value(tmp_path):
    with pytest.raises(ConfigError, match="reset = 'False'"):  # pitfall 11
        load(write(tmp_path, minimal("reset = 'False'\n")))
    with pytest.raises(ConfigError, match="method.bias = 0"):
        load(write(tmp_path, minimal("bias = 0\n")))


def test_what_fields_say_together_is_checked_too(tmp_path):
    with pytest.raises(ConfigError, match="heads = 7 does not divide width = 128"):
        load(write(tmp_path, minimal("heads = 7\n")))


def test_a_file_lies_on_its_base_and_below_the_settings_and_every_key_says_so():
    found = load(DEMO, ["run.rounds=3", "method.select=farthest"])
    described = {key: (value, origin) for key, value, _, origin in found.described()}
    assert described["run.rounds"] == ("3", "--set run.rounds=3")
    assert described["method.select"] == ('"farthest"', "--set method.select=farthest")
    assert described["method.name"][1] == "configs/demo/pfedmoap.toml"
    assert described["data.name"][1] == "configs/demo/_base.toml"
    assert described["method.lam"][1] == "default"


def test_of_several_bases_the_later_wins_and_the_file_wins_over_all(tmp_path):
    write(tmp_path, 'name = "a"\n[run]\nrounds = 3\nseed = 5\n[learning]\nbatch = 2', "a.toml")
    write(tmp_path, "[run]\nrounds = 4\nseed = 6", "b.toml")
    below = "base = ['a.toml', 'b.toml']\n" + minimal("[run]\nrounds = 7\n")
    both = load(write(tmp_path, below, "c.toml"))
    values = both.values
    assert (values["run"]["rounds"], values["run"]["seed"], values["learning"]["batch"]) == (
        7,
        6,
        2,
    )
    with pytest.raises(ConfigError, match="expected the path of another config file, or a list"):
        load(write(tmp_path, "base = [1]", "d.toml"))


def test_every_option_of_every_class_that_a_config_can_name_says_what_it_means():
    tables = [*NAMED.values(), PLAIN]
    classes = {table[name] for table in tables for name in table}
    assert len(classes) > 20
    for kind in classes:
        assert all(meanings(kind).values()), kind


@dataclass(frozen=True)
class Own:
    """Settings as a user may write them."""

    path: str = option(REQUIRED, says="a file")
    rate: float = option(0.1, says="learning rate", gt=0, le=1)
    kinds: list[str] = option([], says="of what")
    sides: tuple[int, ...] = option((), says="in pixels")
    plain: int = 3


def test_an_option_is_a_field_with_its_default_its_meaning_and_its_bounds():
    assert Own("a") == Own("a", 0.1, [], (), 3)
    assert Own("a").kinds is not Own("b").kinds
    with pytest.raises(TypeError, match="path"):
        Own()
    values, wrong = checked(Own, "own", {"path": "a", "rate": 1, "sides": [2]})
    assert (Own(**values), wrong) == (Own("a", 1.0, [], (2,)), [])
    assert checked(Own, "own", {"rate": 1.5, "kinds": 3, "plain": "x", "side": 1})[1] == [
        "own.path is missing (a file)",
        "own.rate = 1.5: input should be less than or equal to 1 (learning rate)",
        "own.kinds = 3: input should be a valid list (of what)",
        "own.plain = 'x': input should be a valid integer",
        "own.side: no such key; did you mean own.sides?",
    ]


def test_a_layer_that_names_another_class_begins_the_section_anew():
    found = load(DEMO, ["model.name=linear-probe"])
    assert set(found.values["model"]) == {"name", "clip", "precision", "classifier", "encoder"}


def test_a_resolved_config_runs_the_same_experiment():
    found = load(DEMO, ["run.seed=3"])
    again = door.parse(found.toml(), "again")
    assert (again.name, again.values, again.tune) == (found.name, found.values, found.tune)


def test_values_to_tune_are_checked_in_their_place(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(
            write(
                tmp_path,
                minimal(
                    '[tune]\n"learning.rat" = [1.0]\n"learning.rate" = [0.1, -2.0]\n"run.seed" ='
                    " []\n"
                ),
            )
        )
    assert "did you mean learning.rate?" in str(caught.value)
    assert "tune: learning.rate = -2.0" in str(caught.value)
    assert 'tune."run.seed" = []' in str(caught.value)


def test_a_value_that_is_set_by_hand_is_not_searched_for():
    found = load(DEMO, ["learning.rate=0.7"])
    assert found.section("learning").rate == 0.7
    assert list(found.tune) == ["method.gate_rate"]


@pytest.mark.parametrize("key", ['tune."learning.rate"', "tune.learning.rate"])
def test_values_to_try_are_set_as_they_are_shown(key):
    config = load(DEMO, [f"{key}=[0.2, 0.4]"])
    assert config.tune["learning.rate"] == [0.2, 0.4]
    rows = {name: origin for name, _, _, origin in config.described()}
    assert rows['tune."learning.rate"'] == f"--set {key}=[0.2, 0.4]"


def test_a_number_is_finite():
    with pytest.raises(ConfigError, match="method.lam = inf"):
        load(DEMO, ["method.lam=inf"])


def test_a_folder_of_configs_is_not_one_config():
    with pytest.raises(ConfigError, match=r"a folder with \d+ configs"):
        load("configs/demo")


@pytest.mark.parametrize("name", ["os:PathLike", "os:getcwd", ":x", "nowhere:Class"])
def test_what_is_no_method_is_not_taken_for_one(name):
    with pytest.raises(ConfigError, match=r"method\.name = "):
        load(DEMO, [f"method.name={name}"])


@pytest.mark.parametrize("text", ["rounds=3", "run.rounds", "run"])
def test_a_setting_without_section_or_value_is_explained(text):
    with pytest.raises(ConfigError, match="use section.key=value"):
        load(DEMO, [text])


def test_missing_broken_and_circular_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file; did you mean pfedmoap.toml"):
        load("configs/demo/pfedmoab.toml")
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load(write(tmp_path, "name = ", "broken.toml"))
    write(tmp_path, "base = 'b.toml'", "a.toml")
    with pytest.raises(ConfigError, match="leads back to itself"):
        load(write(tmp_path, "base = 'a.toml'", "b.toml"))


def test_a_class_of_ones_own_is_named_by_module_and_class(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend("examples")
    found = load(
        write(tmp_path, minimal("share = 0.25\n").replace("pfedmoap", "own_method:Between"))
    )
    assert found.section("method").share == 0.25
    with pytest.raises(ConfigError, match="own_method:Betwen"):
        load(write(tmp_path, minimal().replace("pfedmoap", "own_method:Betwen")))


def test_a_method_that_cannot_work_with_a_model_says_so_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match='set model.name = "prompted-clip"'):
        door.parts(load(write(tmp_path, minimal().replace("prompted-clip", "linear-probe"))))


def test_a_gate_wider_than_the_features_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="method.width = 256 is wider than the features, 128"):
        door.parts(load(DEMO, ["method.width=256"]))


POOLED = {"pooled": True, "participation": 0.01}  # all data in one place: one client trains


def test_every_shipped_config_loads_and_all_of_the_demo_have_the_same_tuning_budget():
    configs = {path.stem: load(path) for path in door.find(Path("configs/demo"))}
    untuned = {name for name, config in configs.items() if not config.tune}
    gaussian = {name for name in configs if name.startswith("gaussian-")}
    assert untuned == {"zero-shot", *gaussian}
    for name in configs.keys() - untuned:
        assert math.prod(map(len, configs[name].tune.values())) == 4, name
    shared = configs["pfedmoap"].values["run"]
    once = {"rounds": 1, "participation": 1.0}
    others = {"zero-shot": {"rounds": 0}, "linear-probe-pooled": POOLED}
    others |= dict.fromkeys(gaussian, once)
    vectors = [name for name in configs if name.startswith("class-vectors")]
    others |= {key: {"participation": 1.0} for key in vectors}
    for name, config in configs.items():
        assert config.values["run"] == shared | others.get(name, {}), name
    assert all(c.values["data"] == configs["pfedmoap"].values["data"] for c in configs.values())


def test_the_experiments_of_fed_moe_differ_in_their_method_alone_and_are_tuned_alike():
    configs = {path.stem: load(path) for path in door.find(Path("configs/demo/fedmoe-digits"))}
    assert len(configs) == 21
    shared = configs["fedavg"].values
    inputs = configs["normalised"].values["model"]
    assert inputs["normalise"] == "image"
    inputs["normalise"] = "none"  # and nothing else
    for name in ("heterofl", "fedrolex"):  # of a wider network clients train a part
        configs[name].values["model"]["width"] = shared["model"]["width"]
    family = configs["fedet"].values  # clients have networks of several kinds
    assert family["model"]["name"] == "family"
    family["model"] = shared["model"]
    for name, config in configs.items():
        assert config.name == name
        assert math.prod(map(len, config.tune.values())) == 4, name
        assert all(
            config.values[section] == shared[section] for section in ("data", "model", "engine")
        ), name
        own = {"judged_by": "clients"}
        other = {"alone": own, "fedavg-personal": own, "cent-moe": {"rounds": 0}, "pooled": POOLED}
        assert config.values["run"] == shared["run"] | other.get(name, {}), name


def test_a_table_of_clients_is_one_value_and_names_clients_that_there_are(tmp_path):
    file = Path("configs/demo/fedmoe-digits/fedet.toml")
    config = load(file, ['method.clients={ "as-scanned-0" = 2, faint-10 = 1 }'])
    said = {key: value for key, value, *_ in config.described()}["method.clients"]
    again = load(file, [f"method.clients={said}"])
    assert again.values["method"]["clients"] == {"as-scanned-0": 2, "faint-10": 1}
    wrong = load(file, ["method.clients={ as-scaned-0 = 2 }"])
    with pytest.raises(ValueError, match="as-scaned-0: no such client; did you mean as-scanned-0"):
        door.parts(wrong)
    with (
        pytest.raises(ValueError, match="method.clients: as-scaned-0"),
        door.opened(wrong, tmp_path),
    ):
        pass


def test_a_shipped_experiment_stands_at_one_of_the_values_that_it_tries():
    """Benchmarks run it as it stands, untuned."""
    for path, _ in door.shipped():
        for key, tried in (config := load(path)).tune.items():
            section, _, name = key.partition(".")
            assert config.values[section][name] in tried, f"{path}: {key}"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["fedmoe-digits", "fedmoe-reviews"])
def test_every_experiment_of_fed_moe_is_whole(folder):
    for file in door.find(Path("configs/demo") / folder):
        federation, _, model, method = door.parts(load(file))
        assert len(federation.reserve), file
        assert method.uploads(model) or method.__class__.__name__ in ("Alone", "Central"), file


def test_shipped_configs_are_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "pfedmoap" in [path.stem for path in door.find(Path("configs/demo"))]
    assert door.find(Path("demo")) == door.find(Path("configs/demo"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no config files in this folder"):
        door.find(Path("empty"))


def test_a_folder_that_is_named_is_taken_whether_or_not_there_is_a_home(monkeypatch, tmp_path):
    for variable in ("HOME", "XDG_CACHE_HOME", "FEDEXPERTS_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)  # a user whom nobody knows
    with pytest.raises(ValueError, match="no home .*: set FEDEXPERTS_CACHE to a folder"):
        door.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert door.cache_folder() == tmp_path / "fedexperts"
    monkeypatch.setenv("FEDEXPERTS_CACHE", str(tmp_path / "here"))
    assert door.cache_folder() == tmp_path / "here"


def test_a_home_that_nobody_has_is_said_and_the_config_can_still_be_shown():
    config = load(DEMO, ["data.name=image-folders", "data.path=~nobody-here/x"])
    assert config.shareable()
    with pytest.raises(ValueError, match="'~nobody-here/x': this machine knows no such home"):
        config.section("data").load(0)


MIXTURE = Path("configs/demo/fedmoe-digits/fedmoe.toml")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "gate.name=resnet18",
            'gate.name = "resnet18" reads inputs .*, which differ from those of the experts',
        ),
        ("model.name=prompted-clip", "start.epochs: PromptedClip has a start of its own"),
        ("data.reserve=0", "start.epochs needs a reserve set, and there is none"),
    ],
)
def test_parts_of_a_mixture_that_do_not_fit_are_refused_before_anything_is_trained(setting, says):
    with pytest.raises(ValueError, match=says):
        door.parts(load(MIXTURE, [setting]))


def test_a_gate_may_have_another_architecture():
    gate = door.parts(load(MIXTURE, ["gate.name=compact-cnn", "gate.width=6"]))[2].gate
    assert gate.initial["0.weight"].shape[0] == 6
