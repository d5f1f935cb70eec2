"""Compiles the real step for chips that are not here, and says what it takes.

`chips` has what is published, `counting` reads the step as written, `hlo` and
`schedule` as compiled, `estimate` puts it together, `search` looks for what
fits, `planning` is what the command calls.
"""

from haikd.plan.planning import plan
