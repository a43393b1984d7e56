"""Where Hydra looks for plugins: `hydra/sweeper=dltrain` and `hydra/launcher=dltrain`; they live in dltrain/sweeps."""

from hydra.core.config_store import ConfigStore

from dltrain.sweeps import plugins


class Sweeper(plugins.Sweeper):
    """The trials of a search, or of any task every combination of values."""


class Launcher(plugins.Launcher):
    """Several jobs at a time on this machine."""


STORE = ConfigStore.instance()
STORE.store(
    group="hydra/sweeper",
    name="dltrain",
    node={"_target_": f"{__name__}.Sweeper", "max_batch_size": None, "params": None},
    provider="dltrain",
)
STORE.store(
    group="hydra/launcher",
    name="dltrain",
    node={"_target_": f"{__name__}.Launcher", "slots": "${oc.select:sweep.slots,1}"},
    provider="dltrain",
)
