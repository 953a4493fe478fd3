"""Configurations of `unrolled train`: every option in a file and as a flag, and what is refused."""

import dataclasses
import math
import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import CHAIN
from hypothesis import given, settings
from hypothesis import strategies as st

import unrolled as ur
from unrolled.app import cli
from unrolled.app.cli import main
from unrolled.app.commands import _config
from unrolled.app.commands._config import ConfigError, all_options, load, to_toml
from unrolled.layers import FAMILIES

pytestmark = pytest.mark.usefixtures("float32_by_default")


def test_every_option_is_a_flag_of_the_same_name(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    flags = map(ur.records.flag_of, all_options())
    assert all(f"{flag} " in shown or f"{flag}," in shown for flag in flags)
    assert not re.search(r"--\w*_\w", shown)
    given = ["--test_signals=a_b", "--test_signals", "-a_b", "a_b", "--"]
    assert [*map(cli._with_hyphens, given)] == ["--test-signals=a_b", "--test-signals", *given[2:]]


VALUES = {  # of every option one that is not its default
    "output": "runs/new one é",
    "seed": 3,
    "dictionary": "ill_conditioned",
    "m": 8,
    "d": 12,
    "kappa": 3.5,
    "dictionary_seed": 2,
    "signals": "planted",
    "probability": 0.2,
    "snr": 40,
    "test_signals": 50,
    "lam": 1e-07,
    "family": "lista_cpss",
    "depth": 3,
    "start": "calibrated",
    "tied": False,
    "support": (0.05, 0.25),
    "activation": "elu",
    "loss": "log_nmse",
    "deep": True,
    "optimizer": "adamw",
    "rate": 1e16,
    "schedule": "cosine",
    "clip": 1,
    "steps": 20,
    "batch": 4,
    "accumulate": 2,
    "reduction": "psum",
    "learn_dictionary": True,
    "evaluate_every": 5,
    "patience": 20,
    "save_every": 10,
}
OTHERS = {
    "method": ("alista", "curriculum"),
    "theta": ("alista", 0.3),
    "ridge": ("alista", 0.5),
    "alpha": ("lamp", 1.5),
    "gain": ("glista", 2.0),
    "guard": ("lista_cp", 0.1),
    "nonnegative": ("lista_cp", True),
    "bend": ("lista_cp", 3.0),
}
OTHERS |= {
    "block": ("bcd", 4),
    "variance": ("tista", 2.0),
    "noise": ("tista", 0.1),
    "sparsity": ("liht", 3),
    "bandwidth": ("sae", 0.01),
}
OF_SIGNALS = {"codes": "lasso", "ratio": 0.2}  # that are in a file
OTHERS |= {"units": ("na_alista", 4), "threshold": ("na_alista", 2.5)}
OTHERS |= {"by": ("alista_at", "residual"), "onsager": ("alista_at", True)}
OTHERS |= {"em": ("vamp_bg", True), "damping": ("vamp_bg", 0.5), "noise_ratio": ("vamp_bg", 1e-4)}


def frozen(value):
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def value_of(config, name):
    """As the file has it, with tuples for lists."""
    tables, section = tomllib.loads(to_toml(config)), all_options()[name].section
    return frozen((tables if section is None else tables[section]).get(name))


def test_every_option_has_one_section_and_survives_toml(tmp_path):
    assert {*VALUES, *OTHERS, *OF_SIGNALS} == set(all_options())
    own = [_config.Config, *_config.SECTIONS.values()]
    names = [f.name for cls in own for f in dataclasses.fields(cls) if f.metadata["help"]]
    assert len(set(names)) == len(names)
    config, path = load(None, VALUES), tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load(path, {}) == config
    for name, value in VALUES.items():
        assert value_of(config, name) == (str(Path.cwd() / value) if name == "output" else value)
    for name, (family, value) in OTHERS.items():
        config = load(None, {"family": family, name: value})
        path.write_text(to_toml(config))
        assert load(path, {}) == config and value_of(config, name) == value
    config = load(None, {"signals": "Y.npy", **OF_SIGNALS})
    path.write_text(to_toml(config))
    assert load(path, {}) == config
    assert [value_of(config, name) for name in OF_SIGNALS] == list(OF_SIGNALS.values())


def test_flags_are_text_and_override_the_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[model]\nfamily = "ista"\ndepth = 4\n[training]\nsteps = 7\nclip = inf\n')
    config = load(path, {"depth": "5", "rate": "1e-2", "deep": True, "snr": "inf", "kappa": None})
    assert (config.model.family, config.model.depth) == ("ista", 5)
    assert (config.training.steps, config.training.rate, config.training.deep) == (7, 0.01, True)
    assert config.training.clip == config.problem.snr == math.inf
    assert value_of(load(None, {"support": "0.1, 0.5"}), "support") == (0.1, 0.5)


def test_without_a_configuration_a_gaussian_dictionary_codes_planted_signals():
    problem = load(None, {}).problem
    assert (problem.dictionary, problem.signals) == ("gaussian", "planted")
    assert (problem.m, problem.d, problem.dictionary_seed) == (250, 500, 0)
    assert (problem.probability, problem.snr, problem.test_signals) == (0.1, math.inf, 1000)
    other = load(None, {"dictionary": "ill_conditioned"}).problem
    assert other == dataclasses.replace(problem, dictionary="ill_conditioned", kappa=10.0)


def test_a_list_of_layers_is_a_chain(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CHAIN)
    config = load(path, {"steps": "7"})
    assert config.chained and [model.depth for model in config.layers] == [3, 2, 2]
    assert config.problem.dictionary[2] == str(tmp_path / "D_3.npy")
    cp, al = ur.lista_cp(3, tied=False), ur.alista(2, support=(0.1, 0.3))
    assert _config.make_model(config) is ur.dsc([cp, ur.layers.ista(2), al])
    path.write_text(to_toml(config), encoding="utf-8")
    assert load(path, {}) == config
    path.write_text(CHAIN.replace("depth = 3", "depth = 5"))
    other = load(path, {})
    assert _config.differences(config, other) == [
        "model.1.depth (3, now 5)",
        "training.steps (7, now 4)",
    ]
    with pytest.raises(ConfigError, match="--depth: the file has a chain; set it there"):
        load(path, {"depth": "5"})


def test_an_activation_may_be_a_description(tmp_path):
    """As `unrolled.activations.describe` gives it: a list in TOML, JSON as a flag."""
    path, form = tmp_path / "config.toml", '["scale", ["compose", ["elu", 0.5], 2], 5]'
    path.write_text(f"model.activation = {form}")
    for config in (load(path, {}), load(None, {"activation": form})):
        assert value_of(config, "activation") == ("scale", ("compose", ("elu", 0.5), 2), 5.0)
        path.write_text(to_toml(config))
        assert load(path, {}) == config
        rho = ur.activations.scale(ur.activations.compose(ur.activations.elu(0.5), 2), 5.0)
        assert _config.make_model(config) is ur.layers.alista(16, activation=rho)
    assert value_of(load(None, {"activation": '["elu", 1]'}), "activation") == "elu"
    with pytest.raises(ConfigError, match="--activation must be a name or a list such as"):
        load(None, {"activation": "[elu"})


def test_paths_start_at_the_folder_of_the_file_and_flags_at_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "configs" / "config.toml"
    path.write_text('output = "run"\n[problem]\ndictionary = "D.npy"\n')
    config = load(path, {"signals": "Y.npy"})
    assert config.output == str(tmp_path / "configs" / "run")
    assert config.problem.dictionary == str(tmp_path / "configs" / "D.npy")
    assert config.problem.signals == str(tmp_path / "Y.npy")
    assert config.problem.m is None and config.problem.snr is None


WRONG = {
    "trainin.steps = 3": "unknown key 'trainin'; did you mean .training.[?]",
    "training.step = 3": "unknown key 'training.step'; did you mean training.steps[?]",
    "steps = 3": "unknown key 'steps'; did you mean training.steps[?]",
    "[model]\nbatch = 3": "unknown key 'model.batch'; did you mean training.batch[?]",
    "zzzz = 1": "unknown key 'zzzz'; expected output, seed or .problem., .model., .training.",
    "import = 'my_module'": "unknown key 'import'",
    "training = 3": "training must be a table, got 3; try .training.",
    "model.family = 'alistaa'": "unknown model.family 'alistaa'; expected one of ista, .*; "
    "did you mean 'alista'[?]; a family of your own needs --import MODULE",
    "model.activation = 'rely'": "unknown name 'rely'; .* did you mean 'relu'[?]",
    "model.activation = 3": "model.activation must be a name or a list such as .*unknown form 3",
    "model.activation = ['elu', -1]": "model.activation must be a name or a list .*alpha must be",
    "training.optimizer = 'adamax'": "unknown training.optimizer 'adamax'; expected one of adam, ",
    "training.optimizer = 3": "training.optimizer must be a string, got 3",
    "training.loss = 'mse'": "unknown training.loss 'mse'; expected one of supervised",
    "training.steps = 2.5": "training.steps must be an integer, got 2.5",
    "training.steps = 2147483648": "training.steps must be .* at most 2147483647, got 2147483648",
    "training.batch = 0": "training.batch must be at least 1, got 0",
    "training.rate = nan": "training.rate must be above 0, got nan",
    "training.rate = inf": "training.rate must be above 0 and at most 1e.30, got inf",
    f"problem.lam = 1{'0' * 400}": "problem.lam must be a number, got 1000*[.]{3}$",
    "training.deep = 1": "training.deep must be True or False, got 1",
    "model.depth = 99999": "model.depth must be at least 1 and at most 10000, got 99999",
    "model.support = 0.1": "model.support must be .rate, largest., got 0.1",
    "model.support = [0.1, 'x']": r"model.support must be \(rate, largest\), got \(0.1, 'x'\)",
    "model.support = [0.1, 1.5]": r"model.support must be .*\[0, 1\]\), got \(0.1, 1.5\)",
    "problem.snr = nan": "problem.snr must be at least -300",
    "output = ''": "output must be printable and not empty, got ''",
    'output = "a\\u0000b"': "output must be printable",
    "seed = -1": "seed must be at least 0",
    "seed": "not readable as TOML",
    "a = " + 5000 * "[": "not readable as TOML",
    "problem = {dictionary = 'D.npy', m = 8}": "m does not go with dictionary .*D.npy",
    "problem.kappa = 3": "kappa does not go with dictionary gaussian",
    "problem = {signals = 'Y.npy', snr = 3}": "snr does not go with dictionary gaussian, "
    "signals .*Y.npy",
    "model = {family = 'ista', tied = true}": "tied does not go with family ista",
    "model.noise = 0.1": "noise does not go with family alista",
    "training = {method = 'curriculum', deep = true}": "deep does not go with method curriculum; "
    "try end_to_end",
    "training = {method = 'curriculum', schedule = 'cosine'}": "schedule cosine does not go with "
    "method curriculum",
    "model.family = 'hyperlista'\ntraining.method = 'curriculum'": "family hyperlista does not go "
    "with method curriculum",
    "model = [{depth = 2}, {depth = 3}]": r"\[\[model\]\] has 2 layers; expected as many files, "
    r"problem.dictionary = .* got one",
    "model = [{depth = 2}]\nproblem.dictionary = ['D.npy', 'E.npy']": "has 1 layers; .* got 2",
    "problem.dictionary = ['D.npy', 'E.npy']": r"dictionary has 2 files; expected one for .model., "
    r"or a \[\[model\]\] for each",
    "problem.dictionary = ['D.npy', 3]": "problem.dictionary must be a string, got 3",
    "model = [3]": r"model must be a list of tables, \[\[model\]\], got 3",
    "model = []": "model must be a table, got",
    "model = [{depth = 2, steps = 3}]": "unknown key 'model.steps'; did you mean training.steps",
    "model = [{family = 'ista', tied = true}]\nproblem.dictionary = ['D.npy']": "tied does not go "
    "with family ista",
    "training.method = 'curriculum'\nmodel = [{depth = 2}]\nproblem.dictionary = ['D.npy']": "a "
    "chain does not go with method curriculum",
    "model = {family = 'lamp', start = 'analytic'}": "lamp cannot start analytic; .* for ista,",
    "model = {family = 'tista', start = 'calibrated'}": "tista cannot start calibrated; .* for",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_a_wrong_configuration_says_what_to_mend(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=WRONG[text]) as found:
        load(path, {})
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "blob", [b"\xff\xfe\x00", b"seed = 1\n" * 2**17, b"seed = \xc3\x28\n"], ids=len
)
def test_what_is_not_text_is_refused(tmp_path, blob):
    path = tmp_path / "config.toml"
    path.write_bytes(blob)
    with pytest.raises(ConfigError, match="config.toml: (not readable as TOML|1179648 bytes)"):
        load(path, {})


def test_a_configuration_may_come_from_an_editor_of_windows(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 4\r\n[training]\r\nsteps = 9\r\n")
    assert (load(path, {}).seed, load(path, {}).training.steps) == (4, 9)


any_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["gaussian", "lista", "D.npy"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
any_name = st.sampled_from([*all_options(), "step", "familly"]) | st.text(max_size=6)
any_table = st.dictionaries(any_name, any_value, max_size=4)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    text=st.text(max_size=40) | st.binary(max_size=40),
    tables=st.dictionaries(
        st.sampled_from(["problem", "model", "training"]), any_table | any_value, max_size=3
    ),
    top=any_table,
    flags=st.dictionaries(
        st.sampled_from(list(all_options())), st.text(max_size=8) | st.booleans(), max_size=3
    ),
)
def test_whatever_is_read_the_answer_is_a_configuration_or_an_error_of_ours(
    fuzzed, text, tables, top, flags
):
    """For any text, any tables and any flags; what is accepted comes back from its TOML."""
    path = fuzzed / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    for read in (
        lambda: load(path, {}),
        lambda: _config.configuration(_config.tables_of(top | tables, path)),
        lambda: load(None, flags),
    ):
        try:
            config = read()
        except ConfigError as error:
            assert str(error) and "Traceback" not in str(error)
        else:
            path.write_text(to_toml(config), encoding="utf-8")
            config = dataclasses.replace(config, output=str(Path(fuzzed, config.output)))
            assert load(path, {}) == config


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_takes_the_starts_it_has_and_no_foreign_options(family):
    cls, needed = FAMILIES[family], {"sparsity": 2} if family == "liht" else {}
    tiny = dict(family=family, depth=2, m=4, d=6, **needed)
    layer = _config.make_model(load(None, tiny))
    steps = jax.eval_shape(layer.init, jax.random.key(0), np.eye(4, 6, dtype=np.float32)).steps
    theory = cls.from_theory is not None or cls.starts_from_theory
    thresholds = {"theta", "alpha"} & set(getattr(steps, "_fields", ()))
    possible = {"init": True, "recipe": True, "analytic": theory, "calibrated": bool(thresholds)}
    for start, can in possible.items():
        if can:
            assert load(None, tiny | {"start": start}).layers[0].start == start
            continue
        with pytest.raises(ConfigError, match=f"{family} cannot start {start}; that is for "):
            load(None, tiny | {"start": start})
    foreign = {"units": 3, "gain": 1.0}
    wrong = [name for name in foreign if name not in layer.options]
    with pytest.raises(ConfigError, match=f"{', '.join(wrong)} does not go with family {family}"):
        load(None, tiny | {name: foreign[name] for name in wrong})
