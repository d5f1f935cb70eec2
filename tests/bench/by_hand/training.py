"""A whole training step."""

from by_hand import attention
from by_hand import logits
from by_hand import networks
import jax
import jax.numpy as jnp
import optax

_WEIGHT = 0.1  # Of features, and of attention.
_MANY = 2**24  # Parameters.


def build(case, arrays):
  """Returns what `by_hand.build` says, of a student and its teacher."""
  part = lambda name: {
      key.partition(':')[2]: jnp.asarray(value)
      for key, value in arrays.items() if key.partition(':')[0] == name
  }
  batch = part('batch')
  params, moving = part('student'), part('student_state')
  teacher = part('teacher'), part('teacher_state')
  name, peak = case['optimizer']
  rate = optax.cosine_decay_schedule(peak, 1000)
  optimizer = optax.sgd(rate) if name == 'sgd' else optax.adamw(
      rate, weight_decay=0.0)

  def step(state, teacher, batch):
    params, moving, opt_state = state

    def loss(params):
      return _loss(case, params, moving, teacher, batch)

    (value, moving), gradient = jax.value_and_grad(
        loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, moving, opt_state), dict(loss=value)

  # On CPU a donated argument makes the call wait for the step before, which
  # tells where a step is short.
  many = sum(x.size for x in params.values()) >= _MANY
  donated = many or jax.default_backend() != 'cpu'
  return (jax.jit(step, donate_argnums=0 if donated else ()),
          (params, moving, optimizer.init(params)), (teacher, batch))


def _loss(case, params, moving, teacher, batch):
  """Returns the loss and the student's moving means."""
  fused, mask = case['reference'] == 'fused', batch['mask']
  causal = case['kind'] == 'text'
  layers = _layers(case)
  taken, lengths, apart = [], [], []

  def attend_teacher(query, key, value):
    if fused:
      taken.append((query, key))
      return attention.blocks(query, key, value, mask, causal)[0]
    allowed = attention.allowed(mask, query.shape[1], causal)
    outputs, maps = attention.whole(query, key, value, allowed)
    taken.append(maps)
    return outputs

  def attend(query, key, value):
    target = taken[layers[len(apart)]] if case['attention'] else None
    lengths.append(query.shape[1])
    if fused:
      outputs, total = attention.blocks(query, key, value, mask, causal,
                                        target)
      apart.append(total)
      return outputs
    allowed = attention.allowed(mask, query.shape[1], causal)
    outputs, maps = attention.whole(query, key, value, allowed)
    if target is not None:
      counts = mask[:, None] if causal else mask[:, None, None]
      rows = attention.distances(maps, target)
      apart.append(jnp.where(counts, rows, 0).sum())
    return outputs

  def run(side, params, moving, attend):
    model, options = case[side]
    if model == 'convnet':
      options = dict(options, is_training=side == 'student')
    return networks.NETWORKS[model](params, moving, batch, attend,
                                    **options)

  # The teacher's come in as constants: only `params` has a gradient.
  target = run('teacher', *teacher, attend_teacher)
  output = run('student', params, moving, attend)
  value = 0.0
  if case['alpha']:
    value += _logits_loss(case, output, target, batch, fused)
  if case['features']:
    value += _WEIGHT * _features(output.features, target.features, layers, mask)
  if case['attention']:
    heads = case['student'][1]['heads']
    queries = mask.sum() if causal else mask.sum() * lengths[0]
    value += _WEIGHT * sum(apart) / (len(layers) * heads * queries)
  return value, output.state


def _logits_loss(case, output, target, batch, fused):
  mask, labels = batch['mask'].reshape(-1), batch['labels'].reshape(-1)
  temperature, alpha = case['temperature'], case['alpha']
  if fused:
    return logits.chunked(output.hidden, output.kernel,
                          (target.hidden, target.kernel), mask, labels,
                          temperature, alpha)
  own, other = (
      x.hidden @ x.kernel if x.logits is None else x.logits
      for x in (output, target))
  return logits.whole(own, other, mask, labels, temperature, alpha)


def _layers(case):
  """Returns the teacher's layer of each layer of the student."""
  student, teacher = (case[side][1].get('depth', 1)
                      for side in ('student', 'teacher'))
  return [round((i + 1) * teacher / student) - 1 for i in range(student)]


def _features(student, teacher, layers, mask):
  """Returns the mean squared error, the teacher's features averaged."""
  total = 0.0
  for own, layer in zip(student, layers):
    target = teacher[layer].reshape(*own.shape, -1).mean(-1)
    counts = jnp.broadcast_to(
        mask.reshape(len(mask), -1), (len(mask), len(own) // mask.shape[0]))
    squares = jnp.where(counts.reshape(-1, 1), (own - target)**2, 0)
    total += squares.sum() / (counts.sum() * own.shape[1])
  return total / len(student)
