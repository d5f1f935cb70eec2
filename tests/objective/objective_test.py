"""What the objective consists of, and what is refused before it runs."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import base
from haikd.core import checks
from haikd.core import masking
from haikd.core import registry
from haikd.losses import register
from haikd.objective import build as build_lib
from haikd.objective import compare as compare_lib

CLASSES = 10


def image_batch(size=4, labels=True):
  rng = np.random.RandomState(0)
  return base.Batch(
      inputs=rng.rand(size, 8, 8, 1).astype(np.float32),
      mask=np.array([True] * (size - 1) + [False]),
      labels=rng.randint(0, CLASSES, size).astype(np.int32) if labels else None)


def vit_config():
  config = config_lib.base()
  vit = dict(patch_size=4, mlp_ratio=2.0)
  config.student.model = config.teacher.model = 'vit'
  config.student.options = dict(vit, width=16, depth=2, heads=2)
  config.teacher.options = dict(vit, width=32, depth=4, heads=4)
  return config


def build(config, batch=None, has_teacher=True):
  batch = image_batch() if batch is None else batch
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  return build_lib.build_objective(
      config, spec=spec, num_classes=CLASSES, has_teacher=has_teacher)


def names(objective):
  return [term.name for term in objective.terms]


def evaluate(objective, batch, step=0, seed=0):
  """Returns loss and terms of freshly initialised networks."""
  frozen = base.Variables(*objective.teacher.init(jax.random.key(7), batch))
  params, state = objective.init(jax.random.key(seed), batch, frozen)
  sums, _ = objective.sums(params, state, frozen, batch, jax.random.key(0))
  loss, means = objective.combine(sums, step)
  return float(loss), {name: float(mean) for name, mean in means.items()}


def test_everything_off_is_plain_logit_distillation():
  objective = build(vit_config())
  assert names(objective) == ['kl_divergence', 'cross_entropy']
  loss, means = evaluate(objective, image_batch())
  expected = 0.9 * means['kl_divergence'] + 0.1 * means['cross_entropy']
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize('smoothing', (0.0, 0.2))
def test_plain_distillation_by_hand(smoothing):
  batch, config = image_batch(), vit_config()
  config.distillation.label_smoothing = smoothing
  objective = build(config)
  frozen = base.Variables(*objective.teacher.init(jax.random.key(7), batch))
  params, state = objective.init(jax.random.key(0), batch, frozen)
  logits = lambda network, *weights: np.asarray(
      network.apply(*weights, None, batch, is_training=False)[0].logits,
      np.float64)
  student = logits(objective.student, params.student, state)
  teacher = logits(objective.teacher, *frozen)
  log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
  log_p, log_q = log_softmax(teacher / 2), log_softmax(student / 2)
  kl = 4 * (np.exp(log_p) * (log_p - log_q)).sum(-1)
  entropy = -((1 - smoothing) * log_softmax(student)[np.arange(4), batch.labels]
              + smoothing * log_softmax(student).mean(-1))
  # The last of the four examples is padding.
  expected = 0.9 * kl[:3].mean() + 0.1 * entropy[:3].mean()
  sums, _ = objective.sums(params, state, frozen, batch, jax.random.key(0))
  np.testing.assert_allclose(
      objective.combine(sums, 0)[0], expected, rtol=1e-5)


@pytest.mark.parametrize('alpha, labels, expected', (
    (1.0, True, ['kl_divergence']),
    (0.0, True, ['cross_entropy']),
    (0.5, True, ['kl_divergence', 'cross_entropy']),
    (0.5, False, ['kl_divergence']),
))
def test_alpha_and_labels_choose_the_terms(alpha, labels, expected):
  config = vit_config()
  config.distillation.alpha = alpha
  objective = build(config, image_batch(labels=labels))
  assert names(objective) == expected


def test_soft_term_keeps_its_weight_without_labels():
  config = vit_config()
  config.distillation.alpha = 0.25
  objective = build(config, image_batch(labels=False))
  loss, means = evaluate(objective, image_batch(labels=False))
  np.testing.assert_allclose(loss, 0.25 * means['kl_divergence'], rtol=1e-6)


def test_without_a_teacher_only_the_terms_on_labels_are_left():
  config = vit_config()
  config.distillation.use_feature_matching = True
  objective = build(config, has_teacher=False)
  assert names(objective) == ['cross_entropy']
  assert float(objective.weights(0)['cross_entropy']) == 1.0


def test_term_is_the_mean_over_its_layers():
  config = vit_config()
  config.distillation.alpha = 0.0
  config.distillation.use_feature_matching = True
  config.distillation.feature_loss_weight = 3.0
  objective = build(config)
  # The weight over layers times count: 3 / (2 * 4) and 3 / (2 * 5).
  counts = dict(cross_entropy=(8.0,), feature_matching=(4.0, 5.0))
  coefficients = objective.coefficients(counts, 0)
  np.testing.assert_allclose(coefficients['cross_entropy'], [1 / 8])
  np.testing.assert_allclose(
      coefficients['feature_matching'], [3 / 8, 3 / 10], rtol=1e-6)
  # (8 / 4 + 20 / 5) / 2 is 3; the loss is 16 / 8 + 3 * 3.
  sums = dict(
      cross_entropy=(base.LossSum(16.0, 8.0),),
      feature_matching=(base.LossSum(8.0, 4.0), base.LossSum(20.0, 5.0)))
  loss, means = objective.combine(sums, 0)
  assert (float(means['cross_entropy']), float(means['feature_matching'])) == (
      2.0, 3.0)
  np.testing.assert_allclose(loss, 11.0, rtol=1e-6)


def test_standard_and_additional_terms_are_one_list():
  config = vit_config()
  config.distillation.use_attention_transfer = True
  config.distillation.attention_loss_weight = 2.0
  config.distillation.use_feature_matching = True
  config.distillation.feature_match_layers = ((0, 1), (1, 3))
  config.losses.last = dict(
      loss='feature_matching', weight=0.5, layers='last', align='project')
  objective = build(config)
  assert objective.layers == dict(
      attention_transfer=((0, (1,)), (1, (3,))),
      feature_matching=((0, (1,)), (1, (3,))),
      last=((1, (3,)),))
  loss, means = evaluate(objective, image_batch())
  weights = dict(
      kl_divergence=0.9,
      cross_entropy=0.1,
      attention_transfer=2.0,
      feature_matching=0.1,
      last=0.5)
  expected = sum(weights[name] * mean for name, mean in means.items())
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_learned_alignment_is_trained_and_stored_separately():
  config = vit_config()
  config.losses.last = dict(
      loss='feature_matching', layers='last', align='project')
  objective = build(config)
  batch = image_batch()
  frozen = base.Variables(*objective.teacher.init(jax.random.key(7), batch))
  params, state = objective.init(jax.random.key(0), batch, frozen)
  assert set(params.align) == {'last'}
  assert not any('align' in name for name in params.student)

  def loss(params):
    sums, _ = objective.sums(params, state, frozen, batch, jax.random.key(0))
    return objective.combine(sums, 0)[0]

  grads = jax.grad(loss)(params)
  assert all(np.any(g != 0) for g in jax.tree.leaves(grads.align))


@pytest.mark.parametrize('weight, steps, expected', (
    (3.0, (0, 5, 100), (3.0, 3.0, 3.0)),
    (dict(kind='linear', start=0.0, end=2.0, steps=10), (0, 5, 10, 99),
     (0.0, 1.0, 2.0, 2.0)),
    (dict(kind='linear', start=1.0, end=0.0, begin=10, steps=10), (0, 15, 30),
     (1.0, 0.5, 0.0)),
    # Half a period of the cosine: (1 + cos(pi/4))/2 = 0.853553 after a quarter.
    (dict(kind='cosine', start=1.0, end=0.0, begin=4, steps=8),
     (0, 4, 6, 8, 12), (1.0, 1.0, 0.853553, 0.5, 0.0)),
))
def test_weight_follows_its_schedule(weight, steps, expected):
  config = vit_config()
  config.losses.more = dict(loss='kl_divergence', weight=weight)
  objective = build(config)
  got = [float(objective.weights(jnp.int32(s))['more']) for s in steps]
  np.testing.assert_allclose(got, expected, atol=1e-6)
  (term,) = [term for term in objective.terms if term.name == 'more']
  assert term.scheduled == isinstance(weight, dict)


def test_alpha_and_weights_of_the_recipe_follow_their_schedules():
  config = vit_config()
  config.distillation.update(dict(
      alpha=dict(kind='piecewise', at=(2, 4), values=(1.0, 0.25, 0.0)),
      use_attention_transfer=True, attention_loss_weight=dict(
          kind='exponential', start=8.0, end=1.0, steps=3),
      use_feature_matching=True, feature_loss_weight=dict(
          kind='constant', value=3.0)))
  config_lib.validate(config)
  objective = build(config)
  expected = {0: (1.0, 0.0, 8.0, 3.0), 1: (1.0, 0.0, 4.0, 3.0),
              2: (0.25, 0.75, 2.0, 3.0), 9: (0.0, 1.0, 1.0, 3.0)}
  for step, weights in expected.items():
    np.testing.assert_allclose(
        list(objective.weights(jnp.int32(step)).values()), weights, rtol=1e-6)
  assert all(term.scheduled for term in objective.terms)
  # Without a teacher the labels have their full weight.
  (term,) = build(config, has_teacher=False).terms
  assert (term.name, term.weight(9), term.scheduled) == (
      'cross_entropy', 1.0, False)


def test_option_that_follows_a_schedule_is_that_number_at_its_step():
  temperature = dict(kind='exponential', start=4.0, end=1.0, steps=2)
  config = vit_config()
  config.distillation.alpha = None
  config.losses.x = dict(
      loss='kl_divergence', options=dict(temperature=temperature))
  batch, values = image_batch(), []
  for value, step in ((temperature, 1), (2.0, 0)):
    config.losses.x.options = dict(temperature=value)
    objective = build(config)
    frozen = base.Variables(*objective.teacher.init(jax.random.key(7), batch))
    params, state = objective.init(jax.random.key(0), batch, frozen)
    sums, _ = objective.sums(params, state, frozen, batch, jax.random.key(0),
                             compare_lib.Context(step=jnp.int32(step)))
    values.append(float(sums['x'][0].total))
  np.testing.assert_allclose(*values, rtol=1e-6)


def test_option_that_a_loss_branches_on_may_not_follow_a_schedule():
  with registry.losses.temporary():

    @register.register_loss(on='logits')
    def branching(student, teacher, *, mask, beta):
      power = 2 if beta > 0.5 else 1
      return masking.masked_mean(
          (jnp.abs(student - teacher)**power).sum(-1), mask)

    config = vit_config()
    config.losses.x = dict(loss='branching', options=dict(beta=0.9))
    build(config)
    config.losses.x.options = dict(beta=dict(kind='linear', steps=3))
    with pytest.raises(checks.ConfigError, match=(
        r'^config\.losses\.x: options must be numbers, not schedules, where a '
        r"loss branches .* schedules for \['beta'\] of branching. Give numb")):
      build(config)


def test_empty_batch_gives_zero_loss_and_gradient():
  batch = image_batch()._replace(mask=np.zeros(4, bool))
  config = vit_config()
  config.distillation.use_attention_transfer = True
  config.distillation.use_feature_matching = True
  objective = build(config)
  frozen = base.Variables(*objective.teacher.init(jax.random.key(7), batch))
  params, state = objective.init(jax.random.key(0), batch, frozen)

  def loss(params):
    sums, _ = objective.sums(params, state, frozen, batch, jax.random.key(0))
    return objective.combine(sums, 0)[0]

  value, grads = jax.value_and_grad(loss)(params)
  assert float(value) == 0
  assert all(np.all(g == 0) for g in jax.tree.leaves(grads))


def test_models_may_return_linear_logits():

  def linear(image, *, is_training, num_classes):
    hidden = image.reshape(image.shape[0], -1)
    kernel = hk.get_parameter('kernel', (64, num_classes),
                              init=hk.initializers.TruncatedNormal())
    return base.LinearLogits(hidden, kernel)

  with registry.models.temporary():
    registry.register_model()(linear)
    config = vit_config()
    config.student.model, config.student.options = 'linear', {}
    loss, _ = evaluate(build(config), image_batch())
  assert np.isfinite(loss)


def mutate(**changes):

  def change(config):
    for path, value in changes.items():
      *way, last = path.split('__')
      node = config
      for name in way:
        node = node[name]
      node[last] = value

  return change


@pytest.mark.parametrize('change, match', (
    (mutate(losses__x=dict(loss='kl_divergense')),
     "got 'kl_divergense'. Did you mean 'kl_divergence'"),
    (mutate(losses__x=dict(loss='kl_divergence', options=dict(temp=2.0))),
     r'config\.losses\.x\.options\.temp must be an option of kl_divergence'),
    (mutate(losses__x=dict(loss='feature_matching', align='pol')),
     "got 'pol'. Did you mean 'pool'"),
    (mutate(losses__x=dict(loss='feature_matching', align_options=dict(a=1))),
     r'config\.losses\.x\.align_options\.a must be an option of pool'),
    (mutate(losses__x=dict(loss='feature_matching', layers=((0, 9),))),
     r'^config\.losses\.x: .*layers must exist in the teacher; got .* 9'),
    (mutate(losses__x=dict(loss='kl_divergence', weight='much')),
     r'config\.losses\.x\.weight must be a finite number, or a dict of a sch'),
    (mutate(losses__x=dict(loss='kl_divergence',
                           weight=dict(kind='linear', stop=1))),
     r'^config\.losses\.x\.weight must be a number or a schedule'),
    (mutate(losses__x=dict(loss='kl_divergence',
                           weight=dict(kind='linear', steps=0))),
     r'^config\.losses\.x\.weight must run over at least one step'),
    (mutate(losses__kl_divergence=dict(loss='kl_divergence')),
     r"^config\.losses\.kl_divergence must have a new name; got 'kl_div"),
    (mutate(student__model='vitt'), "got 'vitt'. Did you mean 'vit'"),
    (mutate(student__options__widht=3),
     r'config\.student\.options\.widht must be an option of vit'),
    (mutate(student__options__patch_size=3), 'patch_size'),
    (mutate(student__taps=dict(features='blok*'),
            distillation__use_feature_matching=True),
     r"taps\.features must match a module that is called; got 'blok\*'"),
    (mutate(student__model='mlp', student__options={},
            distillation__use_attention_transfer=True),
     r"config\.student\.taps\.attention must be given, since a loss"),
    (mutate(teacher__options__num_classes=100),
     r'^config\.distillation\.alpha \(kl_divergence\): .*same vocabulary.* '
     '90 classes'),
    (mutate(distillation__temperature=dict(
        kind='linear', start=2.0, end=1.0, steps=0)),
     r'config\.distillation\.temperature must run over at least one step'),
    (mutate(student__model='vti'),
     r"config\.student\.model must name a registered model; got 'vti'"),
    (mutate(losses__x=dict(loss='kl')),
     r"config\.losses\.x\.loss must name a registered loss; got 'kl'"),
    (mutate(distillation__use_feature_matching=True,
            distillation__feature_match_layers=(0, 5)),
     r'^config\.distillation\.feature_match_layers: .*got student layer 5'),
    (mutate(losses__x=dict(loss='feature_matching', align='none')),
     r'^config\.losses\.x: .*same shape; got .*16.*32'),
))
def test_what_cannot_work_is_refused(change, match):
  config = vit_config()
  change(config)
  with pytest.raises(checks.ConfigError, match=match):
    config_lib.validate(config)
    build(config)


def test_term_that_needs_labels_is_refused_without_them():
  config = vit_config()
  config.losses.x = dict(loss='cross_entropy')
  match = r'^config\.losses\.x: .*labels must be given'
  with pytest.raises(checks.ConfigError, match=match):
    build(config, image_batch(labels=False))


def test_loss_may_take_the_student_alone():
  with registry.losses.temporary():

    @register.register_loss(on='features')
    def size(student, teacher=None, *, mask, labels=None):
      assert teacher is None and labels is None
      return masking.masked_mean(jnp.abs(student), mask)

    config = vit_config()
    config.teacher.taps = dict(features='no_such_module')  # Not looked for.
    config.losses.size = dict(loss='size', layers='last')
    batch = image_batch(labels=False)
    objective = build(config, batch)
    assert objective.layers == dict(size=((1, (1,)),))
    _, means = evaluate(objective, batch)
    assert means['size'] > 0
    batch = image_batch()._replace(labels=None)
    del config.losses['size']
    alone = build(config, image_batch(), has_teacher=False)
    assert names(alone) == ['cross_entropy']


def test_tap_on_what_returns_two_arrays_is_refused():

  class Two(hk.Module):
    """Returns two arrays."""

    def __call__(self, x):
      return x, x

  def two(image, *, is_training, num_classes):
    x, _ = Two(name='both')(image.reshape(image.shape[0], -1))
    return hk.Linear(num_classes)(x)

  with registry.models.temporary():
    registry.register_model(taps=dict(features='both'))(two)
    config = config_lib.base()
    config.student.model = config.teacher.model = 'two'
    config.distillation.use_feature_matching = True
    match = (r'config\.student\.taps\.features must match modules that return '
             'one array; got tuple')
    with pytest.raises(checks.ConfigError, match=match):
      build(config)


def test_network_may_ask_for_a_key_it_has_no_use_for():

  def noisy(image, *, is_training, num_classes):
    key = hk.next_rng_key()
    x = image.reshape(image.shape[0], -1)
    return hk.Linear(num_classes)(x) + jax.random.normal(key, (num_classes,))

  with registry.models.temporary():
    registry.register_model()(noisy)
    config = config_lib.base()
    config.student.model = config.teacher.model = 'noisy'
    one, _ = evaluate(build(config), image_batch())
    two, _ = evaluate(build(config), image_batch())
  assert one == two


def test_nothing_to_learn_from_is_refused():
  config = vit_config()
  config.distillation.alpha = 0.0
  with pytest.raises(checks.ConfigError, match='at least one term; got none'):
    build(config, image_batch(labels=False))


def test_nan_in_padded_hidden_states_reaches_no_gradient():

  def linear(tokens, *, is_training, mask, num_classes):
    hidden = hk.Embed(8, 6)(tokens)
    # A careless network might leave NaN in its padding.
    hidden = jnp.where(mask[..., None], hidden, jnp.nan)
    kernel = hk.get_parameter('kernel', (6, num_classes), init=jnp.ones)
    return base.LinearLogits(hidden, kernel)

  batch = base.Batch(
      inputs=np.arange(8, dtype=np.int32).reshape(2, 4),
      mask=np.arange(4) < np.array([[4], [1]]),
      labels=np.zeros((2, 4), np.int32))
  with registry.models.temporary():
    registry.register_model()(linear)
    config = config_lib.base()
    config.student.model = config.teacher.model = 'linear'
    objective = build(config, batch)
    frozen = base.Variables(*objective.teacher.init(jax.random.key(7), batch))
    params, state = objective.init(jax.random.key(0), batch, frozen)

    def loss(params):
      sums, _ = objective.sums(params, state, frozen, batch, jax.random.key(0))
      return objective.combine(sums, 0)[0]

    value, grads = jax.value_and_grad(loss)(params)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('impl', ['threefry2x32', 'unsafe_rbg'])
def test_initial_parameters_come_from_a_split_key(impl):
  # fold_in gives the keys of split with JAX's default generator alone.
  rng, batch = jax.random.key(3, impl=impl), image_batch()
  objective = build(vit_config(), batch, has_teacher=False)
  params, _ = objective.init(rng, batch, None)
  expected, _ = objective.student.init(jax.random.split(rng)[0], batch)
  jax.tree.map(np.testing.assert_array_equal, params.student, expected)


def test_aligner_that_says_it_keeps_logits_has_to():

  def narrowed(student, teacher, *, mask, on):
    return base.Pair(student, teacher, mask & False)

  with registry.aligners.temporary():
    registry.register_aligner(lazy=True, keeps_logits=True)(narrowed)
    config = vit_config()
    config.losses.x = dict(loss='kl_divergence', align='narrowed')
    match = r'config\.losses\.x.*keeps_logits=True must return logits and mask'
    with pytest.raises(checks.ConfigError, match=match):
      build(config)
