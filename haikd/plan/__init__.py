"""Compiles the real step for chips that are not here, and says what it takes.

`chips` has published peaks. `counting` reads the step as written, `hlo` and
`schedule` read it as compiled, and `estimate` combines them. `search` finds
what fits. The command calls `planning`.
"""

from haikd.plan.planning import plan
