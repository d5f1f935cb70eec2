"""Mixtures of data sets through the pipeline."""

import json

import jax
import numpy as np
import pytest

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import registry
from haikd.data import arrays
from haikd.data import description
from haikd.data import pipeline
from haikd.data import source
from haikd.data import spec as spec_lib


@pytest.fixture
def numbered(fresh):
  """A data set of examples that are numbers, from `first` on."""

  def spec(*, first, size=12, classes=3, width=2):
    del first, size
    return spec_lib.Spec(dict(
        number=spec_lib.Column((width,), np.int64),
        label=spec_lib.Column((), np.int64)), classes)

  @registry.register_dataset(spec=spec)
  def numbers(split, *, first, size=12, classes=3, width=2):
    start = first + (500 if split == 'validation' else 0)
    number = np.arange(start, start + size)
    return arrays.Arrays(dict(
        number=np.stack([number] * width, 1), label=number % classes),
                         num_classes=classes)

  @registry.register_dataset()
  def sized(split, *, first, size=12):
    return numbers(split, first=first, size=size)


def make_config(**parts):
  config = config_lib.base()
  config.batch_size = 8
  config.evaluation.batch_size = 16
  config.evaluation.final = 'validation'
  config.data.name = 'numbers'
  config.data.mixture = parts or dict(
      a=dict(weight=1, options=dict(first=0)),
      b=dict(weight=3, options=dict(first=1000, size=20)))
  config_lib.validate(config)
  return config


def build(config, index=0, count=1):
  return pipeline.build_data(config, process_index=index, process_count=count)


def make_config_of_texts(texts):
  """Returns the config of a mixture of texts, `{name: TextInfo}`."""
  @registry.register_dataset()
  def files(split, *, first):
    made = arrays.Arrays(dict(number=np.arange(3)), num_classes=3)
    made.text = texts[first]
    return made

  config = make_config(**{name: dict(name='files', options=dict(first=name))
                          for name in texts})
  config.data.name = 'files'
  return config


def numbers_of(batch):
  return batch.inputs[:, 0].tolist()


def test_batches_are_mixed_by_weight(numbered):
  iterator = build(make_config()).train()
  for _ in range(6):
    drawn = numbers_of(next(iterator))
    assert sum(number < 1000 for number in drawn) == 2  # 1/4 of 8, each time.


def test_stages_have_weights_of_their_own(numbered):
  parts = dict(a=dict(weight=1, options=dict(first=0)),
               b=dict(weight=0, options=dict(first=1000, size=20)))
  ramp = dict(kind='linear', start=0.0, end=1.0, steps=2)
  config = make_config(**parts)
  config.steps = 12
  config.stages = dict(
      both=dict(start=4, data=dict(mixture=dict(b=1))),
      # It begins with the stage: 0 at step 8, a half at step 9.
      last=dict(start=8, data=dict(mixture=dict(
          a=0.5, b=dict(weight=ramp)))))
  config_lib.validate(config)
  joining = make_config(a=parts['a'])
  joining.steps = 12
  joining.stages = config.stages.copy_and_resolve_references()
  joining.stages.both.data.mixture = dict(
      b=dict(weight=1, options=dict(first=1000, size=20)))
  config_lib.validate(joining)
  assert [x.config.data.to_dict() for x in config_lib.stages_of(joining)] == [
      x.config.data.to_dict() for x in config_lib.stages_of(config)]
  assert config_lib.joined(joining).data == config.data
  iterator = build(config_lib.joined(joining)).train()
  shares = [sum(number >= 1000 for number in numbers_of(next(iterator)))
            for _ in range(12)]
  assert shares[:9] == [0] * 4 + [4] * 4 + [0]
  assert abs(sum(shares[9:]) - (4 + 2 * 16 / 3)) <= 1
  # The student alone, which has no stages, reads what is open already.
  del config['stages']
  config.stages = {}
  assert build(config).splits.dataset['parts'] == (
      build(make_config(**parts)).splits.dataset['parts'])


@pytest.mark.parametrize('taken', [0, 5])
@pytest.mark.parametrize('count', [1, 2])
def test_resumed_run_and_any_number_of_processes_see_the_same(
    numbered, taken, count):
  rising = dict(kind='linear', start=0.2, end=2.0, steps=9)
  config = make_config(
      b=dict(weight=rising, options=dict(first=1000, size=20)),
      a=dict(weight=0.7, options=dict(first=0)))
  whole = build(config).train()
  expected = [numbers_of(next(whole)) for _ in range(12)]
  config = config_lib.ConfigDict(json.loads(config.to_json_best_effort()))
  shares = []
  for index in range(count):
    iterator = build(config, index, count).train()
    for _ in range(taken):
      next(iterator)
    resumed = build(config, index, count).train()
    resumed.set_state(json.loads(json.dumps(iterator.get_state())))
    shares.append([numbers_of(next(resumed)) for _ in range(taken, 12)])
  assert [sum(parts, []) for parts in zip(*shares)] == expected[taken:]


def test_evaluation_sees_every_example_of_all_or_of_one(numbered):
  data = build(make_config())
  seen = {}
  for split in ('validation', 'b/validation', 'validation[:3]'):
    seen[split] = [number for batch in data.evaluation(split)
                   for number, real in zip(numbers_of(batch), batch.mask)
                   if real]
  assert seen == {
      'validation': [*range(500, 512), *range(1500, 1520)],
      'b/validation': [*range(1500, 1520)],
      'validation[:3]': [*range(500, 503), *range(1500, 1503)],
  }
  assert data.sizes == dict(train=32, validation=32)


def test_description_is_that_of_one_data_set(numbered):
  config = make_config()
  described, num_classes, _ = description.describe(config)
  assert num_classes == 3
  assert described == build(config).spec
  assert jax.tree.leaves(described)[0].shape == (8, 2)


def test_names_and_options_are_those_of_the_config_unless_given(numbered):
  config = make_config(a=2, b=dict(name='sized', options=dict(first=100)))
  config.data.options = dict(first=0, size=4, width=2)  # `sized` has no width.
  data = build(config)
  assert sorted(number for batch in data.evaluation('train')
                for number in numbers_of(batch)) == [
                    0, 1, 2, 3, 100, 101, 102, 103]


def test_folders_are_those_of_their_names(fresh):
  folders = {}

  @registry.register_dataset()
  def files(split, *, source_dir=None):
    folders[source_dir] = split
    return arrays.Arrays(dict(number=np.arange(3)))

  config = make_config(a=1, b=dict(source_dir='elsewhere'))
  config.data.name, config.data.source_dir = 'files', 'texts'
  build(config).sizes
  assert [*folders] == ['texts/a', 'elsewhere']


@pytest.mark.parametrize('parts, error, text', [
    (dict(a='x'), checks.ConfigError,
     "config.data.mixture.a must be a weight or a dict of fields; got 'x'"),
    (dict(a=dict(wieght=1)), checks.ConfigError,
     'config.data.mixture.a.wieght must be a field of a data set of a mixture. '
     "Did you mean 'weight'"),
    (dict(a=dict(weight='x')), checks.ConfigError,
     "config.data.mixture.a.weight must be a finite number.*; got 'x'"),
    (dict(a=float('nan')), checks.ConfigError, 'mixture.a must be a weight or'),
    (dict(a=dict(kind='linear', start=1)), checks.ConfigError,
     'config.data.mixture.a must run over at least one step'),
    (dict(a=dict(options=3)), checks.ConfigError, 'a.options must be a dict'),
    (dict(a=dict(name=3)), checks.ConfigError, 'a.name must name a data set'),
    (dict(a=dict(source_dir=3)), checks.ConfigError,
     'a.source_dir must be None or a folder'),
    (dict(a=-1), checks.ConfigError, 'config.data.mixture must have weights'),
    (dict(a=dict(options=dict(frist=3))), checks.ConfigError,
     r"Did you mean 'first'.*\(config.data.mixture.a\)"),
    (dict(a=1, b=dict(options=dict(classes=4))), checks.DataError,
     'agree in the number of classes.*; got 3 in a and 4 in b'),
    (dict(a=1, b=dict(options=dict(width=5))), checks.DataError,
     'agree in the keys, shapes and dtypes of examples; got .*in a and .*in b'),
    (dict(a=dict(name='sized')), checks.ConfigError,
     "config.data.name must be the name of a data set of the mixture; got"),
    (dict(a=dict(options=dict(tokenizer='x'))), checks.ConfigError,
     "mixture.a.options.tokenizer must be left out; got 'x'. Set config"),
    (dict(a=1, b=dict(name='digit')), checks.ConfigError,
     r"must be a registered data set.*\(config.data.mixture.b\)"),
])
def test_data_sets_that_do_not_fit_are_refused(numbered, parts, error, text):
  with pytest.raises(error, match=text):
    config = make_config(**parts)
    config.data.options = dict(first=0, width=2)
    data = build(config)
    data.check()
    next(data.train())


def test_option_that_no_data_set_takes_is_refused(numbered):
  config = make_config(a=dict(name='sized', options=dict(first=1)))
  config.data.name, config.data.options = 'sized', dict(width=2)
  with pytest.raises(checks.ConfigError, match=(
      r"config.data.options must have .* takes; got \['width'\]")):
    build(config)


def test_a_class_has_one_number_in_all_data_sets(words, tmp_path):
  for name, labels in dict(a=['pos', 'neg'], b=['very', 'pos']).items():
    (tmp_path / name).mkdir()
    (tmp_path / name / 'train.jsonl').write_text(''.join(
        json.dumps(dict(text=text, label=label)) + '\n'
        for text, label in zip('ij' if name == 'a' else 'gh', labels)))
  config = make_config(a=1, b=1)
  config.batch_size = 2
  config.data.name, config.data.source_dir = 'labelled_sentences', str(tmp_path)
  config.data.data_dir = str(tmp_path / 'prepared')
  config.data.options = dict(tokenizer=words, length=2)
  config.evaluation.batch_size = 4
  config.evaluation.split = config.evaluation.final = 'train'
  for split in ('train', 'train[:1]'):
    config.data.train = split
    with pytest.raises(checks.DataError, match=(
        r"agree in the names of classes; got \('neg', 'pos'\) in a and "
        r"\('pos', 'very'\) in b. Set config.data.options.classes to all")):
      build(config).check()
  # What the message recommends.
  config.data.options.classes = ('neg', 'pos', 'very')
  batch, = build(config).evaluation('train')
  # In `words`, i is 11 and j is 12; g is 9 and h is 10.
  assert batch.inputs[:, 0].tolist() == [11, 12, 9, 10]
  assert batch.labels.tolist() == [1, 0, 2, 1]


def test_texts_of_two_tokenizers_do_not_mix(fresh):
  texts = {'a': source.TextInfo('x', 3), 'b': source.TextInfo('y', 3)}

  config = make_config_of_texts(texts)
  with pytest.raises(checks.DataError, match=(
      'agree in the tokenizer; got x in a and y in b. prune=True makes')):
    build(config).check()


def test_texts_with_two_chat_templates_do_not_mix(fresh):
  texts = {'a': source.TextInfo('x', 3),
           'b': source.TextInfo('chosen', 3, own='x'),
           'c': source.TextInfo('other', 3, own='x')}
  with pytest.raises(checks.DataError, match=(
      'agree in the chat template that options choose; got chosen in b and '
      'other in c')):
    build(make_config_of_texts(texts)).check()


def test_texts_of_a_mixture_have_all_ends(fresh):
  config = make_config_of_texts({
      'a': source.TextInfo('x', 3, ends=(2,)), 'b': source.TextInfo('x', 3),
      'c': source.TextInfo('x', 3, ends=(1,)),
      'd': source.TextInfo('x', 3, ends=(2,))})
  for role in ('teacher', 'student'):
    assert build(config).text_of(role) == source.TextInfo('x', 3, ends=(2, 1))
