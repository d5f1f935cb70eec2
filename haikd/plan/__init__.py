"""Compiles the real step for chips that are not here, and says what it takes.

`chips` has topologies. `hlo` and `schedule` read the step as compiled, and
`estimate` combines that with what `engine.counting` reads in it as written.
`search` finds what fits. The command calls `planning`.
"""

from haikd.plan.planning import plan
