"""Start a run's processes: this one, several through torchrun's elastic agent, or one rank of somebody else's launch.

The parent composes and holds the run; workers read nothing but its folder. Under torchrun or SLURM rank 0 is the
parent, and the other ranks follow it from run to run.
"""

from dltrain.launch.follow import follow, lead, together
from dltrain.launch.parent import led, start
from dltrain.launch.plan import external, follows, processes
from dltrain.launch.rank import die_with

__all__ = ["die_with", "external", "follow", "follows", "lead", "led", "processes", "start", "together"]
