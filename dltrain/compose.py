"""Words to one checked config: the only user of Hydra for composing. It imports no torch, pandas or scikit-learn."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.checks import ROOT, alike, not_options, overridden, problems
from dltrain.choices import SEVERAL, defaults, groups, options, user_dirs
from dltrain.choices import configs_dir as configs_dir
from dltrain.errors import ConfigError, nearest, show

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

# Names of files and columns are taken as they are typed: Hydra's grammar knows no spaces, brackets or accents.
LITERAL = re.compile(
    r"\+{0,2}(data\.columns\..+|data\.(?:path|\w+_path|source|target|id|ignore|weight|delimiter|time|entity|image|split\.by)"
    r"|name|output_root)"
)
TYPED = "+typed=typed"  # carries literal text past Hydra's grammar, as a config of its store
TAGS = ("log",)  # of tag(...), those that say something


def compose(words: list[str]) -> dict[str, Any]:
    """The checked config of some words; raises ConfigError with every problem at once."""
    cfg = composed(words)
    return checked(cfg, chosen(cfg.hydra))


def composed(words: list[str]) -> "DictConfig":
    """Hydra's own config of some words, `hydra` included; its complaints become a ConfigError."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    tree, rest = literals(words)
    try:
        cfg = _compose(tree, rest)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError("\n".join(_explain(error, tree, rest))) from None
    except YAMLError as error:
        raise ConfigError(_not_yaml(error)) from None
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
    return cfg


def checked(cfg: "DictConfig", choices: Mapping[str, Any], incomplete: bool = False) -> dict[str, Any]:
    """A plain dict of a composed config: groups, root settings and `choices`; raises ConfigError with every problem.

    `choices` is what `chosen` says; `incomplete` lets settings that must be given be absent still.
    """
    config, broken = _plain(cfg)
    found = [*broken.values(), *_others(broken, problems(config, choices, incomplete=incomplete))]
    if found:
        raise ConfigError("\n".join(found))
    return {**config, "choices": dict(choices)}


def recheck(config: Mapping[str, Any]) -> None:
    """Check a run's recorded settings as typed ones are, where the options that were chosen are known here."""
    choices = config["choices"]
    if any(not_options(group, option) for group, option in choices.items()):
        return
    settings = {key: value for key, value in config.items() if key not in ("format", "hash", "choices")}
    if found := problems(deepcopy(settings), choices):
        raise ConfigError("\n".join(found))


def literals(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split words into the settings whose values are literal text, as a tree, and the words that Hydra reads.

    >>> literals(["data.path=houses (1).csv", "data.target=[a, b]", "seed=1"])
    ({'data': {'path': 'houses (1).csv', 'target': ['a', 'b']}}, ['seed=1'])
    """
    tree: dict[str, Any] = {}
    rest: list[str] = []
    for word in words:
        column = word.lstrip("+").startswith("data.columns.")
        key, equals, text = word.rpartition("=") if column else word.partition("=")
        match = LITERAL.fullmatch(key)
        if not match or not equals:
            rest.append(word)
            continue
        parts = ["data", "columns", match[1].removeprefix("data.columns.")] if column else match[1].split(".")
        _put(tree, parts, _literal(text))
    return tree, rest


def literal_words(words: list[str]) -> list[str]:
    """The words whose values are literal text."""
    rest = literals(words)[1]
    return [word for word in words if word not in rest]


def _literal(text: str) -> str | list[str] | None:
    """A literal value; brackets around the whole make a list, in which quotes keep a comma."""
    if text == "null":
        return None
    if text.startswith("[") and text.endswith("]"):
        items = re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]+)\s*(?:,|$)""", text[1:-1])
        return [re.sub(r"""^(["'])(.*)\1$""", r"\2", item.strip()) for item in items]
    return text


def _escape(value: Any) -> Any:
    """Literal text as OmegaConf must see it, so that it reads no interpolation in it."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _put(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[parts[-1]] = value


def prepare(tree: dict[str, Any]) -> list[str]:
    """Tell Hydra of the user's folders and of literal settings; returns the words that it must be given besides."""
    from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            known = {element.path for element in search_path.get_path()}
            for folder in reversed(user_dirs()):
                if (path := f"file://{folder.resolve()}") not in known:
                    search_path.append("user", path, anchor=SearchPathQuery(provider="main"))

    plugins = Plugins.instance()
    if not any(plugin.__name__ == "UserConfigs" for plugin in plugins.discover(SearchPathPlugin)):
        plugins.register(UserConfigs)
    if not tree:
        return []
    ConfigStore.instance().store(group="typed", name="typed", package="_global_", node=_escape(tree))
    return [TYPED]


def _compose(tree: dict[str, Any], words: list[str]) -> "DictConfig":
    import hydra

    user_dirs()  # its complaints come before Hydra's
    extra = prepare(tree)
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3", job_name="dltrain"):
        return hydra.compose("config", overrides=[*words, *extra], return_hydra_config=True)


def _plain(cfg: "DictConfig") -> tuple[dict[str, Any], dict[str, str]]:
    """The config as a plain dict, and a sentence for each setting whose interpolation cannot be resolved."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    cfg = cfg.copy()
    broken: dict[str, str] = {}
    with open_dict(cfg):
        cfg.pop("hydra", None)
        while True:
            try:
                return _container(cfg, resolve=True), broken
            except OmegaConfBaseException as error:
                key = str(error.full_key or "")
                if not key or key in broken:
                    raise ConfigError(_first_line(error)) from None
                raw = _container(cfg)
                for part in re.findall(r"[^.\[\]]+", key):
                    raw = raw[int(part) if isinstance(raw, list) else part]
                broken[key] = f"{key} must refer to a setting that exists, got {raw} ({_first_line(error)})"
                OmegaConf.update(cfg, key, None)


def _container(node: Any, resolve: bool = False) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=resolve)


def _others(broken: Mapping[str, str], found: list[str]) -> list[str]:
    """The problems of settings that are not broken already."""
    names = {re.split(r"[.\[]\d", key)[0] for key in broken}
    return [text for text in found if text.split(" ")[0] not in names]


def chosen(hydra: Any) -> dict[str, Any]:
    """What was chosen of each group, from Hydra's own node; a list for groups of which several may be.

    Hydra records no choice of several; those are read again from the words, else from what chosen files override.
    """
    single = {
        k: v
        for k, v in _container(hydra.runtime.choices).items()
        if v is not None and not k.startswith("hydra/") and k != "typed"
    }
    lists: dict[str, Any] = {group: [] for group in SEVERAL}
    for key, names in single.items():
        if str(names) in (known := options(key.partition("@")[0])):
            lists |= overridden(known[str(names)])
    for word in _container(hydra.overrides.task):
        group, _, value = word.lstrip("+").partition("=")
        if group in SEVERAL or (value.startswith("[") and options(group)):
            lists[group] = [name.strip(" \"'") for name in value.strip("[]").split(",")]
    for group in SEVERAL:
        names = lists[group] if isinstance(lists[group], list) else [lists[group]]
        lists[group] = [str(name) for name in names if str(name) not in ("none", "None", "null", "")]
    found = single | lists
    order = [*groups(), *found]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def trials(words: list[str]) -> tuple[list[list[str]], int]:
    """Of a sweep: some trials that together hold every value that is swept over, and how many trials there are.

    The first value of every sweep, then each other value alone; of a range or an interval its two ends. Enough to find
    what is wrong before anything runs.
    """
    rest = [*_beside(words), *literals(words)[1]]
    swept: dict[int, list[str]] = {}
    number = 1
    for place, word in enumerate(rest):
        override = _parse(word)
        if isinstance(override, str) or not override.is_sweep_override():
            continue
        values: list[str] = []
        if override.is_discrete_sweep():
            values = [f"{override.get_key_element()}={value}" for value in listed(override)]
            number *= len(values)
        else:
            values = [f"{override.get_key_element()}={int(end) if end == int(end) else end}" for end in ends(override)]
        swept[place] = values if override.is_choice_sweep() else [*values[:1], *values[1:][-1:]]
    first = [swept[place][:1] if place in swept else [word] for place, word in enumerate(rest)]
    lists = [first]
    for place, values in swept.items():
        lists += [[*first[:place], [value], *first[place + 1 :]] for value in values[1:]]
    return [literal_words(words) + [word for part in parts for word in part] for parts in lists], number


def _beside(words: list[str]) -> list[str]:
    """What is swept over besides what is typed: an experiment may say so in hydra.sweeper.params."""
    from omegaconf.errors import OmegaConfBaseException

    typed = literals(words)[1]
    alone = [word for word in typed if isinstance(found := _parse(word), str) or not found.is_sweep_override()]
    try:
        params = _container(composed([*literal_words(words), *alone]).hydra.sweeper, resolve=True).get("params") or {}
    except (ConfigError, OmegaConfBaseException):  # as what is made of these words will say
        return []
    keys = {word.partition("=")[0] for word in words}
    return [f"{key}={value}" for key, value in params.items() if key not in keys]


def listed(override: "Override") -> list[str]:
    """The values of a list, a range or a glob that is swept over, as they are typed.

    Raises ConfigError if there are none.
    """
    from hydra.core.override_parser.types import Glob

    _check_tags(override)
    swept, word, known = override.value(), str(override.input_line), dict[str, Path]()
    if not isinstance(swept, Glob):
        values = [*override.sweep_string_iterator()]
    elif known := options(group := override.key_or_group):
        values = swept.filter([*known])
    else:
        tail = nearest("" if group in ROOT else group, groups())
        raise ConfigError(f"{group} must be a group to have choices that match, got {word.partition('=')[2]}{tail}")
    if values:
        return values
    raise ConfigError(f"{word} must have a value to sweep over, got none{nearest('', known)}")


def ends(override: "Override") -> tuple[int | float, int | float]:
    """The two ends of an interval that is swept over; raises ConfigError if nothing is between them."""
    _check_tags(override)
    interval: Any = override.value()
    if interval.start is None or interval.end is None or not interval.start < interval.end:
        raise ConfigError(f"{override.input_line} must go up from its first number to its second")
    return interval.start, interval.end


def _check_tags(override: "Override") -> None:
    """Raise ConfigError for a tag that says nothing to a search."""
    for tag in sorted(getattr(override.value(), "tags", ())):
        if tag not in TAGS:
            raise ConfigError(
                f"{override.get_key_element()} must have a tag that there is, got {tag}{nearest(tag, TAGS)}"
            )


def _explain(error: Exception, tree: dict[str, Any], words: list[str]) -> list[str]:
    """Every problem of words that Hydra refused: its first complaint is one of perhaps several."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    found: list[str] = []
    picked: list[str] = []  # words that Hydra takes together: choices, and its own settings
    settings: list[Override] = []
    for word in words:
        override = _parse(word)
        if isinstance(override, str):
            found.append(override)
        elif text := _not_an_option(override):
            found.append(text)
        elif override.is_hydra_override() or (_is_group(override) and not override.is_sweep_override()):
            picked.append(word)
        else:
            settings.append(override)
    try:
        cfg = _compose(tree, picked)
    except (HydraException, OmegaConfBaseException, ValueError) as other:
        return found or list(_not_settings(picked)) or [refused(other)]
    config, broken = _plain(cfg)
    closed: set[str] = set()
    more = [text for override in settings for text in _set(config, override, closed)]
    found += [*more, *broken.values()]
    found += _others(broken, problems(config, chosen(cfg.hydra), closed, incomplete=bool(found)))
    return found or [refused(error)]


def _not_settings(words: list[str]) -> Iterator[str]:
    """A sentence for each choice whose file holds something else, which Hydra does not name."""
    from omegaconf import OmegaConf

    for group, _, name in (word.partition("=") for word in words):
        if name in (known := options(group)) and OmegaConf.is_list(held := OmegaConf.load(known[name])):
            yield f"{group} must be settings, got {show(_container(held))}"


def _parse(word: str) -> "Override | str":
    """Hydra's reading of a word, or the sentence that says why it has none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = word.partition("=")
    if not key or (not equals and not word.startswith("~")):
        return f"{word} must be written as key=value"
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        pass
    if re.search(r"\b(choice|range|interval|glob)\(\s*\)", value):
        return f"{word} must have a value to sweep over, got none"
    if not re.fullmatch(r"[~+]{0,2}[\w.@/$:-]+", key):
        return f"{key} must be the name of a setting{nearest(key.strip(' +~-'), _known())}"
    for left, right in ("[]", "{}", "()"):
        if value.count(left) > value.count(right):
            return f"{key} must be closed with {right}, got {value}"
        if value.count(left) < value.count(right):
            return f"{key} must be opened with {left}, got {value}"
    for quote in "'\"":
        if value.count(quote) % 2:
            return f"{key} must have its second quote, got {value}"
    return f"{key} must be quoted, as in '{key}=\"{value}\"', got {value}"


def _is_group(override: "Override") -> bool:
    return bool(options(override.key_or_group)) and not isinstance(override.value(), dict)


def _not_an_option(override: "Override") -> str | None:
    """The sentence about a choice that cannot be right, whatever the other words are."""
    group, names = override.key_or_group, override.value()
    if override.is_delete() or override.is_sweep_override() or not _is_group(override):
        return None
    if names is None and (group in SEVERAL or defaults().get(group) == "null"):
        return None
    return "\n".join(not_options(group, names)) or None


def _set(config: dict[str, Any], override: "Override", closed: set[str]) -> Iterator[str]:
    """Set a word's value in a plain config as Hydra would, so that the checks see every word; yields its problem."""
    path, word = override.key_or_group, override.input_line or ""
    parts = path.split(".")
    depth, here = 0, config
    while depth < len(parts) and isinstance(here, dict) and parts[depth] in here:
        here, depth = here[parts[depth]], depth + 1
    exists = depth == len(parts)
    if override.is_sweep_override():
        text = word.partition("=")[2]
        several = f", or write {path}=[{text}] for a list" if path in SEVERAL or isinstance(here, list) else ""
        yield f"{word} needs -m: it is a sweep{several}"
        return
    if override.is_delete():
        if not exists:
            yield f"{word} must name a setting that exists{alike(parts, here if depth == len(parts) - 1 else [])}"
        return
    if override.is_add() and exists and not isinstance(here, dict | list):
        yield f"{word} must be written without +: the setting exists"
    if not exists and not override.is_add() and not override.is_force_add():
        closed.add(".".join(parts[: depth + 1]))
    value = override.value()
    _put(config, parts, {**here, **value} if exists and isinstance(here, dict) and isinstance(value, dict) else value)


def _known() -> list[str]:
    return [*groups(), *ROOT]


def _not_yaml(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name} line {mark.line + 1}" if mark else "a config file"
    return f"{where} must be YAML: {getattr(error, 'problem', None) or error}"


def refused(error: Exception) -> str:
    """The sentence for what Hydra refuses and we know nothing better about."""
    if match := re.match(r"Could not override '(\w+@[\w.]+)'", str(error)):
        return f"{match[1]} must name a choice that there is; +{match[1]}=... adds one"
    group, _, name = str(getattr(error, "missing_cfg_file", None) or "").rpartition("/")
    if group:
        return f"{group}={name}: no such {group}{nearest(name, getattr(error, 'options', None) or [])}"
    return f"Hydra cannot compose these settings: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    """The one line of another library's complaint that says something."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
