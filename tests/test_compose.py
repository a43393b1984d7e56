"""Words to a checked config: literal text, defaults, choices, the user's own configs, and the text of every error."""

from pathlib import Path
from typing import Any

import pytest

from dltrain.checks import typed
from dltrain.choices import configs_dir, describe, groups, options
from dltrain.commands import commands
from dltrain.compose import checked, chosen, compose, composed, literals, trials
from dltrain.errors import ConfigError, show
from dltrain.settings import Settings

TOY = """\
# a network for tests
_target_: dltrain.models.mlp.MLP
width: 8
layers: [4, 4]
rate: 0.5
fast: false
label: plain
dropout: 0.0
anything: null
inner:
  depth: 1
"""
FOREIGN = "# of another library\n_target_: torch.nn.Linear\nin_features: 8\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with two networks of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLTRAIN_CONFIGS", raising=False)
    write("model/toy.yaml", TOY)
    write("model/foreign.yaml", FOREIGN)
    return tmp_path


def write(name: str, text: str) -> None:
    path = Path("configs", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(list(words))
    return str(caught.value)


def listed(names: Any) -> str:
    return f"({', '.join(sorted(names))})"


EVERY = "model.from_run, model.weights, model.head, model.freeze, model.layer_decay"  # of every network
TOY_KEYS = (
    "(model.width, model.layers, model.rate, model.fast, model.label, model.dropout, model.anything, model.inner,"
    f" {EVERY})"
)
DROPUT = f"model.droput: no such setting of model=toy; did you mean model.dropout? {TOY_KEYS}"
ROOT_KEYS = listed({*groups(), *Settings.__dataclass_fields__})
WHERE = "must name a class of dltrain, torch.nn, torch.optim or sklearn, or of a module in trust=[...]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # choices
        (["optimizer=adamv"], f"optimizer=adamv: no such optimizer; did you mean adam? {listed(options('optimizer'))}"),
        (["regularizer=[l1,l3x]"], None),
        (["model=[mlp,cnn]"], None),
        (["model=null"], None),
        (["model=_base"], None),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: no such hydra/launcher (basic, dltrain)"),
        (["model@task.other=mlp"], "model@task.other must name a choice that there is; +model@task.other=... adds one"),
        (["modle=mlp"], f"modle: no such setting; did you mean model? {ROOT_KEYS}"),
        # keys
        (["model=toy", "model.droput=0.5"], DROPUT),
        (["model=toy", "+model.droput=0.5"], DROPUT),
        (
            ["model=toy", "model.inner.depht=2"],
            "model.inner.depht: no such setting of model=toy; did you mean model.inner.depth? (model.inner.depth)",
        ),
        (
            ["model=foreign", "model.bias=true"],
            "model.bias: no such setting of model=foreign; it belongs to model=linear",
        ),
        (
            ["model=foreign", "model.dtype=x"],
            f"model.dtype: no such setting of model=foreign (model.in_features, {EVERY}); another argument of Linear is"
            " written +model.dtype=...",
        ),
        (["model=toy", "+model.width=3"], "+model.width=3 must be written without +: the setting exists"),
        (
            ["model=toy", "~model.wdth"],
            f"~model.wdth must name a setting that exists; did you mean model.width? {TOY_KEYS}",
        ),
        (["epoch=5"], f"epoch: no such setting; did you mean epochs? {ROOT_KEYS}"),
        (["threshold=0.4"], "threshold: no such setting; did you mean task.threshold?"),
        (
            ["data.target=price"],
            "data.target: no such setting of data=digits; it belongs to data=csv, images, pairs, series",
        ),
        (["regularizer.l1.weight=1"], "regularizer.l1 needs regularizer=l1"),
        (
            ["model=linear", "regularizer=dropout"],
            "regularizer=dropout needs model.dropout, which model=linear does not have",
        ),
        (["+pipeline.poly.degree=2"], "pipeline.poly must have a _target_, got {degree: 2}"),
        # types
        (["optimizer.lr=abc"], "optimizer.lr must be a number, got abc"),
        (["optimizer.lr=null"], "optimizer.lr must be a number, got null"),
        (["model=toy", "model.layers=[64,x]"], "model.layers must be a list of whole numbers, got [64, x]"),
        (["model=toy", "model.layers=64"], "model.layers must be a list of whole numbers, got 64"),
        (["model=toy", "model.width=2.5"], "model.width must be a whole number, got 2.5"),
        (["model=toy", "model.width=true"], "model.width must be a whole number, got true"),
        (["model=toy", "model.fast=1"], "model.fast must be true or false, got 1"),
        (["model=toy", "model.label=3"], "model.label must be text, got 3"),
        (["model=toy", "model.inner=3"], "model.inner must be settings (model.inner.depth), got 3"),
        (["optimizer.betas=0.9"], "optimizer.betas must be a list of numbers, got 0.9"),
        # root settings
        (["epochs=2.5"], "epochs must be a whole number of at least 1, got 2.5"),
        (["seed="], "seed must be a whole number of at least 0, got ''"),
        (["batch_size=al"], "batch_size must be a whole number of at least 1, or all, got al"),
        (["name=a/b"], "name must be letters, digits, '.', '_' and '-', beginning with a letter or digit, got a/b"),
        # ranges
        (["optimizer.lr=-1.0"], "optimizer.lr must be above 0, got -1.0"),
        (["optimizer.lr=inf"], "optimizer.lr must be above 0, got inf"),
        (["optimizer.weight_decay=-1"], "optimizer.weight_decay must be at least 0, got -1"),
        (["optimizer.betas=[0.9,1]"], "optimizer.betas must be in [0, 1), got [0.9, 1]"),
        (["optimizer=sgd", "optimizer.momentum=1"], "optimizer.momentum must be in [0, 1), got 1"),
        (["model=toy", "model.dropout=2"], "model.dropout must be in [0, 1), got 2"),
        (["loss.label_smoothing=1.0"], "loss.label_smoothing must be in [0, 1), got 1.0"),
        (
            ["regularizer=early_stopping", "regularizer.early_stopping.patience=0"],
            "regularizer.early_stopping.patience must be at least 1, got 0",
        ),
        (["data.split.valid=-0.1"], "data.split.valid must be at least 0, got -0.1"),
        (["task.threshold=2"], "task.threshold must be between 0 and 1, or auto, got 2"),
        (["trainer.save_every=soon"], "trainer.save_every must be like 1 (epochs) or 500steps or 30s, got soon"),
        # targets
        (["model._target_=os.system"], f"model._target_ {WHERE}, got os.system"),
        (["model._target_=torch.nnx.Linear"], f"model._target_ {WHERE}, got torch.nnx.Linear"),
        (["model._target_=3"], f"model._target_ {WHERE}, got 3"),
        (["+pipeline.x={_target_:sklearn.A,b:{_target_:os.system}}"], f"pipeline.x.b._target_ {WHERE}, got os.system"),
        (["+model._partial_=true"], "model._partial_ must not be set, got true"),
        (["+pipeline.x={_target_:sklearn.A,a:[{_args_:[1]}]}"], "pipeline.x.a.0._args_ must not be set, got [1]"),
        # words that Hydra cannot read
        (["epochs"], "epochs must be written as key=value"),
        (["model.hidden=[64,x"], "model.hidden must be closed with ], got [64,x"),
        (["model.hidden=64]"], "model.hidden must be opened with [, got 64]"),
        (["monitor='f1"], "monitor must have its second quote, got 'f1"),
        (["monitor=a,,b"], "monitor must be quoted, as in 'monitor=\"a,,b\"', got a,,b"),
        (["optimizer.lr=0.1,0.2"], "optimizer.lr=0.1,0.2 needs -m: it is a sweep"),
        (["seed=range(3)"], "seed=range(3) needs -m: it is a sweep"),
        (["regularizer=l1,l2"], "regularizer=l1,l2 needs -m: it is a sweep, or write regularizer=[l1,l2] for a list"),
        (
            ["model=toy", "model.layers=3,4"],
            "model.layers=3,4 needs -m: it is a sweep, or write model.layers=[3,4] for a list",
        ),
        # interpolation
        (
            ["model.hidden=${foo}"],
            "model.hidden must refer to a setting that exists, got ${foo} (Interpolation key 'foo' not found)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_text_of_every_error(words: list[str], message: str | None) -> None:
    models = options("model")
    here = {
        "regularizer=[l1,l3x]": f"regularizer=l3x: no such regularizer {listed(options('regularizer'))}",
        "model=[mlp,cnn]": f"model must be one of {', '.join(models)}, got [mlp, cnn]",
        "model=null": f"model must be one of {', '.join(models)}, got null",
        "model=_base": f"model=_base: no such model {listed(models)}",
    }
    write("model/_base.yaml", TOY)
    assert refused(*words) == (message or here[words[0]])


def test_all_problems_are_told_at_once_in_the_order_of_the_checks() -> None:
    words = [
        "model=toy",
        "model.droput=0.5",
        "optimizer.lr=abc",
        "epochs=2.5",
        "model.dropout=7",
        "+loss._partial_=true",
    ]
    assert refused(*words).splitlines() == [
        DROPUT,
        "optimizer.lr must be a number, got abc",
        "epochs must be a whole number of at least 1, got 2.5",
        "model.dropout must be in [0, 1), got 7",
        "loss._partial_ must not be set, got true",
    ]
    assert refused("optimizer=adamv", "model.hidden=[64,x", "epochs=0").splitlines()[1:] == [
        "model.hidden must be closed with ], got [64,x",
        "epochs must be a whole number of at least 1, got 0",
    ]


def test_a_setting_that_must_be_given() -> None:
    write("data/own.yaml", "_target_: dltrain.data.csv.CSV\npath: ???\ntarget: ???\n")
    assert refused("data=own") == "data.path must be given\ndata.target must be given"
    assert refused("data=own", "data.path=", "data.target=x") == "data.path must be given"
    assert compose(["data=own", "data.path=a.csv", "data.target=x"])["data"]["path"] == "a.csv"


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("data.path=houses (1).csv", ("path",), "houses (1).csv"),
        ("data.path=été.csv", ("path",), "été.csv"),
        ("data.path=[x].csv", ("path",), "[x].csv"),
        ("data.path=a,b.csv", ("path",), "a,b.csv"),
        ("data.path=~/a=b.csv", ("path",), "~/a=b.csv"),
        ("data.path=${x} \\${y}\\.csv", ("path",), "${x} \\${y}\\.csv"),
        ('data.path=it\'s "q" {z}.csv', ("path",), 'it\'s "q" {z}.csv'),
        ("data.path=1e3", ("path",), "1e3"),
        ("data.valid_path=v (2).csv", ("valid_path",), "v (2).csv"),
        ("data.target=Preis_€", ("target",), "Preis_€"),
        ("data.target=年", ("target",), "年"),
        ("data.target=price=2", ("target",), "price=2"),
        ("data.target=null", ("target",), None),
        ("data.target=[a, 'b,c', d e]", ("target",), ["a", "b,c", "d e"]),
        ("data.ignore=[x]", ("ignore",), ["x"]),
        ("data.ignore=x y", ("ignore",), ["x y"]),
        ("data.weight=true", ("weight",), "true"),
        ("data.split.by=2020", ("split", "by"), "2020"),
        ("data.delimiter=,", ("delimiter",), ","),
        ("data.columns.sepal length (cm)=number", ("columns", "sepal length (cm)"), "number"),
        ("data.columns.zip=category", ("columns", "zip"), "category"),
        ("+data.columns.a.b=c=date", ("columns", "a.b=c"), "date"),
        ("data.columns.été[0]=text", ("columns", "été[0]"), "text"),
    ],
)
def test_names_of_files_and_columns_are_literal(word: str, path: tuple[str, ...], value: Any) -> None:
    node = compose(["data=csv", "data.path=a.csv", "data.target=price", word])["data"]
    for part in path:
        node = node[part]
    assert node == value


def test_literal_settings_do_not_invent_keys() -> None:
    assert "data.id: no such setting of data=digits" in refused("data.id=a (b)")


def test_literal_words_are_forgotten_by_the_next_compose() -> None:
    assert compose(["data=csv", "data.path=a.csv", "data.target=price"])["data"]["path"] == "a.csv"
    assert refused("data=csv", "data.target=price") == "data.path must be given"


def test_literals_leave_the_other_words_to_hydra() -> None:
    words = ["data.path=a b", "model=mlp", "name=007", "data.rows=5", "data.columns.x=text"]
    tree = {"data": {"path": "a b", "columns": {"x": "text"}}, "name": "007"}
    assert literals(words) == (tree, ["model=mlp", "data.rows=5"])


def test_defaults_are_those_of_the_design() -> None:
    config = compose([])
    assert config["choices"] == {
        "data": "digits",
        "pipeline": "standard",
        "model": "mlp",
        "activation": "relu",
        "task": "supervised",
        "loss": "auto",
        "optimizer": "adamw",
        "scheduler": "constant",
        "regularizer": [],
        "trainer": "single",
        "logger": [],
        "sweep": "grid",
    }
    settings = {key: value for key, value in config.items() if key not in (*config["choices"], "choices")}
    assert Settings(**settings) == Settings()  # config.yaml and the dataclass agree, and nothing else is in the root
    assert config["regularizer"] == config["logger"] == {}


def test_numbers_take_the_type_of_the_shipped_default() -> None:
    config = compose(["optimizer.lr=1", "clip_norm=1", "optimizer.betas=[0,0.5]", "trust=mynets"])
    assert repr(config["optimizer"]["lr"]) == "1.0"
    assert repr(config["clip_norm"]) == "1.0"
    assert repr(config["optimizer"]["betas"]) == "[0.0, 0.5]"
    assert config["trust"] == ["mynets"]
    assert compose(["name=2024"])["name"] == "2024"


@pytest.mark.parametrize(
    ("value", "default", "result"),
    [
        (3, 1, (3, "")),
        (3, 1.0, (3.0, "")),
        (True, 1.0, (True, "a number")),
        ("x", None, ("x", "")),
        ([1], "auto", ([1], "")),
        ("x", [], (["x"], "")),
        ("x", ["y"], (["x"], "")),
        ([1, "a"], [None, 2.0], ([1, "a"], "")),
        (["a"], [True], (["a"], "a list of true or false")),
    ],
)
def test_types_follow_the_default(value: Any, default: Any, result: tuple[Any, str]) -> None:
    assert typed(value, default) == result


def test_choices_of_several() -> None:
    assert compose(["regularizer=l1"])["choices"]["regularizer"] == ["l1"]
    assert compose(["regularizer=none"])["choices"]["regularizer"] == []
    assert compose(["logger=[jsonl,tensorboard]"])["choices"]["logger"] == ["jsonl", "tensorboard"]
    config = compose(["regularizer=[dropout,l2,early_stopping]", "regularizer.l2.weight=1"])
    assert config["choices"]["regularizer"] == ["dropout", "l2", "early_stopping"]
    assert set(config["regularizer"]) == {"l2", "early_stopping"}  # dropout is a setting of the network
    assert config["regularizer"]["l2"]["weight"] == 1.0
    assert config["model"]["dropout"] > 0


def test_a_loss_may_say_how_the_target_is_scaled() -> None:
    assert compose(["loss=poisson", "data=diabetes"])["data"]["target_transform"] == "none"


def test_an_experiment_chooses_and_sets_and_words_come_last() -> None:
    write(
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /model: toy\n  - override /regularizer: [l1, dropout]\n"
        "epochs: 7\nmodel: {width: 9}\n",
    )
    config = compose(["experiment=mine", "model.width=10"])
    assert (config["epochs"], config["model"]["width"], config["choices"]["model"]) == (7, 10, "toy")
    assert config["choices"]["regularizer"] == ["l1", "dropout"]
    assert config["choices"]["experiment"] == "mine"
    assert compose(["experiment=mine", "regularizer=l2", "epochs=3"])["choices"]["regularizer"] == ["l2"]
    write("experiment/bad.yaml", "# @package _global_\nmodel: {wdth: 9}\nepochs: x\n")
    assert refused("experiment=bad", "model=toy").splitlines() == [
        "experiment=bad needs model.wdth, which model=toy does not have",
        "epochs must be a whole number of at least 1, got x",
    ]


@pytest.mark.parametrize("experiment", options("experiment"))
def test_shipped_experiments_compose(experiment: str) -> None:
    assert compose([f"experiment={experiment}"])["choices"]["experiment"] == experiment


@pytest.mark.parametrize(
    "words",
    [
        ["+pipeline.poly={_target_:sklearn.preprocessing.PolynomialFeatures,degree:2}"],
        ["+pipeline.poly._target_=sklearn.preprocessing.PolynomialFeatures", "+pipeline.poly.degree=2"],
        ["+optimizer.foreach=true"],
        ["~optimizer.amsgrad"],
        ["model=toy", "model._target_=mynets.Net", "+model.new=3", "trust=mynets"],
        ["+regularizer.own={_target_:mynets.Penalty,weight:3}", "trust=[mynets]"],
        ["+model@task.decoder=mlp", "task.decoder.hidden=[3]"],
        ["model={hidden: [2]}"],
        ["task.threshold=auto"],
    ],
    ids=" ".join,
)
def test_what_users_of_hydra_expect_works(words: list[str]) -> None:
    compose(words)


def test_own_configs_extend_and_are_types() -> None:
    assert compose(["model=toy", "model.width=3"])["model"]["width"] == 3
    write("model/child.yaml", "defaults: [toy]\nwidth: 5\n")
    assert compose(["model=child", "model.label=x"])["model"]["width"] == 5
    assert refused("model=child", "model.rate=x") == "model.rate must be a number, got x"


def test_own_configs_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere/model").mkdir(parents=True)
    (tmp_path / "elsewhere/model/far.yaml").write_text(TOY)
    monkeypatch.setenv("DLTRAIN_CONFIGS", "elsewhere")
    assert compose(["model=far"])["choices"]["model"] == "far"
    assert "toy" not in options("model")
    monkeypatch.setenv("DLTRAIN_CONFIGS", "nowhere")
    assert refused() == "DLTRAIN_CONFIGS must be a folder, got nowhere"


def test_a_shipped_name_is_refused() -> None:
    write("model/mlp.yaml", TOY)
    assert refused() == "configs/model/mlp.yaml is also shipped; rename it"
    write("model/mlp.yaml", (configs_dir() / "model/mlp.yaml").read_text(encoding="utf-8"))
    compose([])  # a copy hides nothing


def test_a_damaged_file_is_named_and_disturbs_nobody_else(here: Path) -> None:
    write("model/bad.yaml", "a: [1\nb: 3")
    assert refused("model=bad").startswith(f"{here}/configs/model/bad.yaml line 2 must be YAML: ")
    assert compose(["model=toy"])["choices"]["model"] == "toy"
    assert "no such setting" in refused("model=toy", "model.foo=3")
    write("model/list.yaml", "- 3")
    assert refused("model=list") == "model must be settings, got [3]"


def test_a_module_of_the_users_own_is_hinted_at() -> None:
    Path("mynets.py").touch()
    assert refused("model._target_=mynets.Net") == f"model._target_ {WHERE}, got mynets.Net; trust=mynets allows it"


def test_trials_of_a_sweep_hold_every_value() -> None:
    words, number = trials(["model=mlp,cnn", "seed=range(5)", "data.path=a,b.csv", "optimizer.lr=1,2,3"])
    assert number == 2 * 5 * 3
    assert words == [
        ["data.path=a,b.csv", "model=mlp", "seed=0", "optimizer.lr=1"],
        ["data.path=a,b.csv", "model=cnn", "seed=0", "optimizer.lr=1"],
        ["data.path=a,b.csv", "model=mlp", "seed=4", "optimizer.lr=1"],
        ["data.path=a,b.csv", "model=mlp", "seed=0", "optimizer.lr=2"],
        ["data.path=a,b.csv", "model=mlp", "seed=0", "optimizer.lr=3"],
    ]


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in groups() for option in options(group)])
def test_every_shipped_option_composes_and_says_what_it_is(group: str, option: str) -> None:
    assert describe(options(group)[option]), f"{group}/{option}.yaml needs a first comment line"
    cfg = composed([f"{group}={option}"])
    config = checked(cfg, chosen(cfg.hydra), incomplete=True)  # a file of rows can only be named by its owner
    assert config["choices"][group] in (option, [option], [])


def test_no_group_is_named_like_a_command() -> None:
    assert not set(groups()) & set(commands())


def test_values_are_shown_as_they_are_typed() -> None:
    assert show({"a": [1, None, True, ""], "b": 1e-08}) == "{a: [1, null, true, ''], b: 1e-08}"
