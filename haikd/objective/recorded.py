"""A teacher that is not there: what was recorded of it stands in its place."""

from collections.abc import Callable, Mapping, Sequence
import inspect
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp

from haikd.core import base
from haikd.core import checks
from haikd.core import recorded as recorded_lib
from haikd.network import network as network_lib
from haikd.objective import pairs as pairs_lib
from haikd.objective import terms as terms_lib
from haikd.teacher_records import hidden
from haikd.teacher_records import records as records_lib

FIELD = 'config.teacher.records'

_MODULE = 'unembedding'
# What losses get of each kind.
_TYPES = {'sampled': recorded_lib.Sampled, 'top_k': recorded_lib.TopK}
_REMEDIES = {
    'sampled': 'Use kl_divergence, which is linear in the probabilities, or '
               "records of kind='hidden'",
    'top_k': "Use top_k_kl, or records of kind='hidden'",
}


class Recorded(NamedTuple):
  """What is known of records before they are read.

  Attributes:
    options: kind and options, as `config.record_options` returns them.
    classes: V.
    unembedding: what turns hidden states into logits, as shapes; None for other
      kinds.
  """

  options: Mapping[str, Any]
  classes: int
  unembedding: Optional[base.LinearLogits] = None

  def network(self) -> network_lib.Network:
    """Returns the network whose output are the records of a batch.

    Its parameters are those of the unembedding.
    """

    def init(rng, batch):
      del rng, batch
      if self.unembedding is None:
        return {}, {}
      zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in self._parts()}
      return {_MODULE: zeros}, {}

    def apply(params, state, rng, batch, *, is_training, batch_axes=(),
              gather: Optional[Callable] = None):
      del rng, is_training, batch_axes
      unembedding = None
      if self.unembedding is not None:
        parts = params[_MODULE]
        if gather is not None:
          parts = {name: gather(parts[name], x.shape, parts[name].dtype)
                   for name, x in self._parts()}
        unembedding = base.LinearLogits(hidden.ABSENT, **parts)
      logits: Any = records_lib.as_logits(batch.teacher, unembedding)
      return network_lib.NetworkOutput(logits, {}), state

    return network_lib.Network('teacher', init, apply, {}, ())

  def variables(self, unembedding: Optional[base.LinearLogits]
                ) -> base.Variables:
    """Returns the variables of that network.

    Args:
      unembedding: the arrays of the unembedding, or None.
    """
    if unembedding is None:
      return base.Variables({}, {})
    given = unembedding._asdict()
    parts = {name: jnp.asarray(given[name]) for name, _ in self._parts()}
    return base.Variables({_MODULE: parts}, {})

  def with_targets(self, spec: base.Batch) -> base.Batch:
    """Returns the shapes of a batch with those of its records.

    Args:
      spec: a batch of ShapeDtypeStructs.
    """
    width = None
    if self.unembedding is not None:
      width = self.unembedding.kernel.shape[0]
    # Predictions of a sequence are as many as the positions of its labels.
    axes = spec.mask.ndim if spec.labels is None else min(
        spec.mask.ndim, max(spec.labels.ndim, 1))
    return spec._replace(teacher=records_lib.targets_spec(
        self.options, self.classes, width, spec, axes))

  def check(self, terms: Sequence[terms_lib.Term],
            student: base.Output) -> None:
    """Refuses terms that cannot learn from the records.

    Args:
      terms: of the objective.
      student: its logits, as shapes.

    Raises:
      ConfigError: a term that compares something else than logits, at another
        temperature, or in a way for which too little was recorded.
    """
    for term in terms:
      if term.needs_teacher:
        self._check_term(term)
    if (not isinstance(student, base.Embedding) and
        student.shape[-1] != self.classes):
      raise checks.ConfigError(
          'config.student must have a logit for each class that was recorded; '
          f'got {student.shape[-1]} logits, where {FIELD} have {self.classes} '
          'classes. Choose the data, or the vocabulary, of the records.')

  def check_spec(self, spec: base.Batch) -> None:
    """Refuses data in which a position holds different tokens."""
    if pairs_lib.have_own_tokens(spec):
      raise checks.ConfigError(
          f'{FIELD} must be left out where the student has a tokenizer of its '
          'own, since nothing is recorded for its positions; got records of '
          f'kind={self.options["kind"]!r}. Leave them out.')

  def _check_term(self, term):
    kind, entry = self.options['kind'], term.entry
    if entry.on != terms_lib.LOGITS:
      raise checks.ConfigError(
          f'{term.field} must be a loss on logits, since {FIELD} hold nothing '
          f'else; got one on {" and ".join(entry.kinds)}, {term.name!r}. Leave '
          f'it out, or {FIELD}.')
    if kind not in _TYPES:
      return
    if _TYPES[kind] not in entry.recorded:
      raise checks.ConfigError(
          f'{term.field} must be a loss that takes records of kind={kind!r}; '
          f'got {entry.function.__name__}. {_REMEDIES[kind]}.')
    if not term.aligner.keeps_logits:
      raise checks.ConfigError(
          f'{term.field}.align must leave logits as they are, since {FIELD} '
          "have none; got an aligner that does not. Set it to 'none'.")
    for name in ('temperature', 'k'):
      self._check_option(term, name)

  def _check_option(self, term, name):
    """Refuses an option of a loss that does not fit what was recorded."""
    parameters = inspect.signature(term.entry.function).parameters
    if name not in parameters or name not in self.options:
      return
    expected = self.options[name]
    given: Any = term.options.get(name, parameters[name].default)
    if name in term.schedules:
      given = 'a schedule'
    fits = given == expected if name == 'temperature' else (
        isinstance(given, int) and given <= expected)
    if not fits:
      rule = 'that' if name == 'temperature' else 'at most that'
      raise checks.ConfigError(
          f'{name} of {term.name} must be {rule} of {FIELD}, {expected}; got '
          f'{given} ({term.field}). Set one of the two.')

  def _parts(self):
    """Returns the arrays of the unembedding, by name."""
    assert self.unembedding is not None
    return [(name, x) for name, x in self.unembedding._asdict().items()
            if x is not None]


def of_records(records: records_lib.Records) -> Recorded:
  """Returns what is known of records that are there."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                        records.unembedding)
  return Recorded(records.recipe.options, records.recipe.classes, shapes)
